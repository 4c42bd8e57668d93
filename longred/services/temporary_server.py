"""A Prefect server for the duration of one command, private to the store.

Prefect can start one itself, but only after its own imports, and it outlives a killed command.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from longred.errors import PreflightError
from longred.services.prefect_api import ask
from longred.store.artifacts import make_folder
from longred.store.databases import refuse_damaged, remove_log

START_SECONDS = 300.0
STOP_SECONDS = 10.0


def prefect_database(root: Path) -> Path:
    """Return the SQLite file of a store's own Prefect server."""
    return root / "prefect" / "prefect.db"


def prefect_environment(root: Path) -> dict[str, str]:
    """Return the settings that keep Prefect's files inside the store, apart from the user's own."""
    home = root / "prefect"
    # The server's secret is set once; its client reads it from another variable.
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    clients = {"PREFECT_API_AUTH_STRING": secret} if secret else {}
    return {
        **clients,
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }


class TemporaryServer:
    """A Prefect server in a child process that ends whenever this process ends.

    The write-ahead log of its database is removed when it ends; the one of a server that was killed
    when the next one starts or ends.

    Args:
        root: root folder of the store; its `prefect` folder holds the server's database and log.

    Attributes:
        url: URL of its API.

    Raises:
        PreflightError: its database is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._database = prefect_database(root)
        refuse_damaged(self._database, "Prefect")
        remove_log(self._database)
        self._log = root / "prefect" / "server.log"
        make_folder(self._log.parent)
        with socket.create_server(("127.0.0.1", 0)) as listening, self._log.open("wb") as output:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [sys.executable, "-m", __name__, str(listening.fileno())],
                env={
                    **os.environ,
                    **prefect_environment(root),
                    "PREFECT_API_URL": self.url,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(listening.fileno(),),
                # Ctrl-C must not end it before the end of the run is recorded.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            PreflightError: it ended, or does not answer in time; the message names its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if ask(f"{self.url}/health") is not None:
                return
            time.sleep(0.1)
        raise PreflightError(f"Prefect's temporary server did not start; its log is {self._log}")

    def stop(self) -> None:
        """Terminate it; kill it after `STOP_SECONDS`."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._process.kill()  # does nothing if it has ended
        self._process.communicate()  # waits and closes its standard input
        remove_log(self._database)


@contextlib.contextmanager
def temporary_server(root: Path) -> Iterator[TemporaryServer]:
    """Start a server and stop it with the block; the caller waits until it answers."""
    server = TemporaryServer(root)
    try:
        yield server
    finally:
        server.stop()


def _end_with_parent() -> None:
    """End this process when the parent's end of its standard input closes."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve on the listening socket whose number is the argument."""
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    # uvicorn raises the signal that ended it again, which would end the process here.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
    finally:
        # The owner does it too, unless it was killed.
        remove_log(Path(os.environ["PREFECT_HOME"]) / "prefect.db")


if __name__ == "__main__":
    main()
