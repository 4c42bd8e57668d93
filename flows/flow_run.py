"""The current flow run, for the record of the run, and a webhook that is told how it ended."""

import os
from typing import Any

import httpx
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as runtime
from prefect.settings import PREFECT_UI_URL
from prefect.utilities.urls import url_for

WEBHOOK_VARIABLE = "LONGRED_WEBHOOK_URL"
SECONDS = 10.0


def current_flow_run() -> dict[str, str | None]:
    """Return the arguments of `open_run` that describe the flow run; all None outside of one.

    The URL is None if the server has no pages.
    """
    identity = runtime.id
    return {"prefect_flow_run_id": identity, "prefect_url": _page(identity) if identity else None}


def _page(identity: object) -> str | None:
    return url_for("flow-run", obj_id=str(identity)) if PREFECT_UI_URL.value() else None


def notify_webhook(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Post the end of a flow run as JSON; Slack, Mattermost and Google Chat show `text`.

    The URL is a secret: it is read from the environment and never logged.
    """
    address = os.environ.get(WEBHOOK_VARIABLE)
    if not address:
        return
    page = _page(flow_run.id)
    text = f"longred: {flow_run.name} is {state.name}"
    content = {
        "text": " ".join(filter(None, [text, page])),
        "flow_run": str(flow_run.id),
        "name": flow_run.name,
        "state": state.name,
        "message": state.message,
        "url": page,
    }
    try:
        answer = httpx.post(address, json=content, timeout=SECONDS)
        problem = None if answer.is_success else f"answered {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = f"could not be reached ({type(error).__name__})"
    if problem:
        flow_run_logger(flow_run, flow).warning("the webhook %s", problem)


HOOKS: dict[str, Any] = {
    f"on_{end}": [notify_webhook] for end in ("completion", "failure", "crashed", "cancellation")
}
"""Hooks of every flow, for every way to end."""
