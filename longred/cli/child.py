"""The command line in a process that ends with its parent: `python -m longred.cli.child VERB …`.

Its standard input is a pipe whose other end only the parent holds.
"""

import os
import signal
import sys
import threading
import time

from longred.cli import main as run_command

END_SECONDS = 60.0


def _end_with_parent() -> None:
    """Stop this process as a user would when the parent ends, in whatever way."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # The parent's Prefect server ended with it, and its client keeps trying to reach it. What a
    # trainer has to save, it saves by itself.
    time.sleep(END_SECONDS)
    os._exit(128 + signal.SIGTERM)


def main() -> None:
    """Run the command line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_command()


if __name__ == "__main__":
    main()
