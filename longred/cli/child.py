"""The command line in a process that ends with its parent: `python -m longred.cli.child VERB …`.

Its standard input is a pipe whose other end only the parent holds.
"""

import os
import signal
import sys
import threading

from longred.cli import main as run_command


def _end_with_parent() -> None:
    """Stop this process as a user would when the parent ends, in whatever way."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_command()


if __name__ == "__main__":
    main()
