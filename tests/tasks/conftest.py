"""A real Prefect server for the tests of tasks and flows."""

from collections.abc import Iterator

import pytest

from longred.temporary_server import temporary_server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a server of the tests' own."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    root = tmp_path_factory.mktemp("prefect-store")
    with temporary_server(root) as server:
        server.wait()
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: root / "home"}):
            yield server.url
