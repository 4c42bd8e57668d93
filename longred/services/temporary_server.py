"""A Prefect server for as long as one command runs: quiet, and private to the store.

Prefect could start one by itself, but only after its own imports, and it would outlive a killed
command.
"""

import contextlib
import http.client
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
from longred.store.artifacts import make_folder

START_SECONDS = 300.0
STOP_SECONDS = 10.0
_READ_SECONDS = 2.0


def prefect_environment(root: Path) -> dict[str, str]:
    """Return the settings that keep Prefect's files inside the store, the user's own untouched."""
    home = root / "prefect"
    # Who a server lets in is said once; its client reads another variable.
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
    """A Prefect server in a child process, which ends when this process does, however it does.

    Args:
        root: the store's root; the server's database and log are in its `prefect` folder.
    """

    def __init__(self, root: Path) -> None:
        self._log = root / "prefect" / "server.log"
        make_folder(self._log.parent)
        with socket.create_server(("127.0.0.1", 0)) as listening, self._log.open("wb") as output:
            self.port = int(listening.getsockname()[1])
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [sys.executable, "-m", __name__, str(listening.fileno())],
                env=os.environ
                | prefect_environment(root)
                | {
                    "PREFECT_API_URL": self.url,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(listening.fileno(),),
                # Ctrl-C must leave it up until the run's end is recorded.
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """The address of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            PreflightError: it ended, or does not answer in time; the message names its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_READ_SECONDS)
            try:
                connection.request("GET", "/api/health")
                if connection.getresponse().status == http.client.OK:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
            finally:
                connection.close()
        raise PreflightError(f"Prefect's temporary server did not start; its log is {self._log}")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()


@contextlib.contextmanager
def temporary_server(root: Path) -> Iterator[TemporaryServer]:
    """Start a server now; the caller waits for it when it needs it, and it ends with the block."""
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
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
