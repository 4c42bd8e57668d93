"""Plain HTTP queries to Prefect's server (and MLflow's) without their clients.

Importing Prefect's client takes seconds, and the library does not depend on it.
"""

import base64
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import longred
from longred.errors import PreflightError, shown

FLOW = "longred"
PAGE = 200
WORKING_DIRECTORY_STEP = "prefect.deployments.steps.set_working_directory"
ANSWER_SECONDS = 30.0
"""Generous, because on a small machine the server shares its processors with a training."""


def chosen_api() -> str | None:
    """Return the API URL that PREFECT_API_URL names; None if it is not set.

    Raises:
        PreflightError: it is no address.
    """
    api = os.environ.get("PREFECT_API_URL") or None
    if api is not None and not re.match(r"https?://[^/\s]", api):
        raise PreflightError(
            f"PREFECT_API_URL: {shown(api)} is no address; write it like http://HOST:4200/api, or "
            "unset the variable to use the store's own server or a temporary one"
        )
    return api


def ask(url: str, question: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Return a service's JSON answer, or None if there is none in time.

    The arguments are those of `request_json`.
    """
    try:
        return request_json(url, question, **options)
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return None


def request_json(
    url: str,
    question: Mapping[str, Any] | None = None,
    *,
    is_prefect: bool = True,
    method: str | None = None,
    seconds: float = ANSWER_SECONDS,
) -> Any:
    """Send an HTTP request, bypassing proxies, and return the JSON answer; `{}` if it is empty.

    Prefect answers 503 while its database is busy; the request is then repeated, as its own client
    does.

    Args:
        url: the URL.
        question: sent as JSON by POST; without one the request is a GET.
        is_prefect: whether to send Prefect's credentials, if there are any; else MLflow's.
        method: another HTTP method.
        seconds: timeout of each read, and time after which 503 is an error.

    Raises:
        OSError: the service cannot be reached in time; urllib.error.HTTPError, a subclass, if it
            answers with an error.
        http.client.HTTPException: the answer is not HTTP.
        json.JSONDecodeError: the answer is not JSON.
    """
    body = None if question is None else json.dumps(question).encode()
    headers = {"Content-Type": "application/json", **_authorization(is_prefect)}
    request = urllib.request.Request(url, data=body, headers=headers, method=method)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with opener.open(request, timeout=seconds) as answer:
                return json.loads(answer.read() or "{}")
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def deployed(api: str, folder: Path | None = None) -> set[str]:
    """Return the names of longred's deployments on a server.

    Args:
        api: URL of the server's API.
        folder: return only those that this version of longred applied from this folder: another
            version has other settings in its forms, and the folder of another installation may be
            gone.
    """
    question = {"flows": {"name": {"any_": [FLOW]}}, "limit": PAGE}
    found = ask(f"{api}/deployments/filter", question) or []
    if folder is not None:
        steps = [{WORKING_DIRECTORY_STEP: {"directory": str(folder)}}]
        current = {"version": longred.__version__, "pull_steps": steps}
        found = [each for each in found if current.items() <= each.items()]
    return {each["name"] for each in found}


def unfinished_flow_runs(api: str) -> list[dict[str, Any]]:
    """Return longred's flow runs that have started and not ended, according to the server."""
    question = {
        "flows": {"name": {"any_": [FLOW]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
        "limit": PAGE,
    }
    return list(ask(f"{api}/flow_runs/filter", question) or [])


def running_tasks(api: str, flow_run_id: str) -> list[str]:
    """Return the ids of a flow run's task runs that are running, according to the server."""
    question = {
        "flow_runs": {"id": {"any_": [flow_run_id]}},
        "task_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
        "limit": PAGE,
    }
    return [each["id"] for each in ask(f"{api}/task_runs/filter", question) or []]


def end_run(api: str, kind: str, run_id: str, state: str, message: str) -> bool:
    """Force a terminal state on a run, bypassing orchestration rules; return whether it succeeded.

    Args:
        api: URL of the server's API.
        kind: `flow_runs` or `task_runs`.
        run_id: id of the run.
        state: `CRASHED` or `CANCELLED`.
        message: the reason.
    """
    wanted = {"type": state, "name": state.capitalize(), "message": message}
    answer = ask(f"{api}/{kind}/{run_id}/set_state", {"state": wanted, "force": True})
    return bool(answer) and answer.get("status") == "ACCEPT"


def _authorization(is_prefect: bool) -> dict[str, str]:
    """Return the authorization header, from the variables that the server's own client reads."""
    if is_prefect:
        names = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
        secret = next(filter(None, map(os.environ.get, names)), "")
    else:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        secret = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}" if user else ""
    coded = base64.b64encode(secret.encode()).decode()
    return {"Authorization": f"Basic {coded}"} if secret else {}
