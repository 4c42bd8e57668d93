"""Tells a webhook how a flow run ended, where the environment names one."""

import os
from typing import Any

import httpx
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_UI_URL
from prefect.utilities.urls import url_for

WEBHOOK_VARIABLE = "LONGRED_WEBHOOK_URL"
SECONDS = 10.0


def tell_webhook(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Post the end of a flow run as JSON; `text` is what Slack, Mattermost and Google Chat show.

    The address is a secret: it is read from the environment and never logged.
    """
    address = os.environ.get(WEBHOOK_VARIABLE)
    if not address:
        return
    page = url_for("flow-run", obj_id=flow_run.id) if PREFECT_UI_URL.value() else None
    text = f"longred: {flow_run.name} is {state.name}"
    told = {
        "text": " ".join(filter(None, [text, page])),
        "flow_run": str(flow_run.id),
        "name": flow_run.name,
        "state": state.name,
        "message": state.message,
        "url": page,
    }
    try:
        answer = httpx.post(address, json=told, timeout=SECONDS)
        problem = None if answer.is_success else f"answered {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = f"could not be reached ({type(error).__name__})"
    if problem:
        flow_run_logger(flow_run, flow).warning("the webhook %s", problem)


HOOKS: dict[str, Any] = {
    f"on_{end}": [tell_webhook] for end in ("completion", "failure", "crashed", "cancellation")
}
"""What a flow does at its end, whichever it is."""
