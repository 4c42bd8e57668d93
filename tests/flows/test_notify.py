"""A webhook is notified when a flow run ends; an unreachable webhook has no effect on the run."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prefect import flow

from flows import stages
from flows.flow_run import HOOKS, WEBHOOK_VARIABLE
from flows.full_pipeline import full_pipeline


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that keeps what it receives, and its secret URL."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if told[-1]["state"] == "Failed" else 200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret-token", told
    server.shutdown()
    thread.join()
    server.server_close()


@flow(name="notified", flow_run_name="toy {works}", **HOOKS)
def notified(works: bool) -> None:
    if not works:
        raise RuntimeError("out of luck")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_webhook_is_told_of_success_and_failure_and_its_address_is_not_logged(
    receiver: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address, told = receiver
    monkeypatch.setenv(WEBHOOK_VARIABLE, address)
    with caplog.at_level(logging.DEBUG, "prefect"):
        notified(works=True)
        with pytest.raises(RuntimeError, match="out of luck"):
            notified(works=False)
    assert [(each["name"], each["state"]) for each in told] == [
        ("toy True", "Completed"),
        ("toy False", "Failed"),
    ]
    assert "out of luck" in told[1]["message"]
    assert told[0]["text"].startswith("longred: toy True is Completed")
    assert all(each["flow_run"] for each in told)
    assert "the webhook answered 500" in caplog.text
    assert "secret-token" not in caplog.text


@pytest.mark.medium
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("address", ["http://127.0.0.1:9/secret-token", "nonsense", ""])
def test_a_webhook_that_is_not_there_changes_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, address)
    notified(works=True)
    assert ("the webhook could not be reached" in caplog.text) == bool(address)
    assert "secret-token" not in caplog.text


def test_every_flow_tells_of_every_end() -> None:
    for each in (full_pipeline, stages.evaluation):
        assert each.on_completion_hooks == each.on_failure_hooks == HOOKS["on_failure"]
        assert each.on_crashed_hooks == each.on_cancellation_hooks == HOOKS["on_crashed"]
