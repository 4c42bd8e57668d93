"""What longred asks Prefect's server by itself: plain questions over HTTP, without its client.

Importing the client takes seconds, and the library does not depend on it.
"""

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

FLOW = "longred"
PAGE = 200
ANSWER_SECONDS = 30.0
"""How long a server may take: on a small machine it shares its processors with a training."""


def ask(
    url: str,
    question: Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    is_prefect: bool = True,
    method: str | None = None,
) -> Any:
    """Return a service's JSON answer, or None where it gives none in time.

    The arguments are those of `request_json`.
    """
    try:
        return request_json(url, question, is_prefect=is_prefect, method=method)
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return None


def request_json(
    url: str,
    question: Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    is_prefect: bool = True,
    method: str | None = None,
    seconds: float = ANSWER_SECONDS,
) -> Any:
    """Send an HTTP request without a proxy and return the JSON answer; `{}` for an empty one.

    Prefect answers 503 while its database is busy; the request is sent again, as its own client
    does.

    Args:
        url: where to ask, on this machine or where the user says.
        question: sent as JSON by POST; without one it is a GET.
        is_prefect: whether the name and password sent, where there are any, are Prefect's; else
            MLflow's.
        method: another HTTP method.
        seconds: how long each read may take, and after which 503 is an error.

    Raises:
        OSError: the service cannot be reached in time; urllib.error.HTTPError, which is one, where
            it answers with an error.
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


def deployed(api: str) -> set[str]:
    """Return the names of longred's deployments on a server."""
    question = {"flows": {"name": {"any_": [FLOW]}}, "limit": PAGE}
    return {each["name"] for each in ask(f"{api}/deployments/filter", question) or []}


def limit_pool(api: str, pool: str, num_runs: int) -> bool:
    """Let a work pool give out only so many flow runs at a time; return whether that worked.

    The server counts them by their states in its database, which outlives its own restarts.
    """
    question = {"concurrency_limit": num_runs}
    return ask(f"{api}/work_pools/{pool}", question, method="PATCH") is not None


def unfinished_flow_runs(api: str) -> list[dict[str, Any]]:
    """Return longred's flow runs that the server takes for begun and not ended."""
    question = {
        "flows": {"name": {"any_": [FLOW]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
        "limit": PAGE,
    }
    return list(ask(f"{api}/flow_runs/filter", question) or [])


def running_tasks(api: str, flow_run_ids: Sequence[str]) -> list[str]:
    """Return the ids of the task runs of some flow runs that the server takes for running."""
    question = {
        "flow_runs": {"id": {"any_": list(flow_run_ids)}},
        "task_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
        "limit": PAGE,
    }
    return [each["id"] for each in ask(f"{api}/task_runs/filter", question) or []]


def end_run(api: str, kind: str, run_id: str, state: str, message: str) -> bool:
    """Give a run its last state, past the rules of orchestration; return whether that worked.

    Args:
        api: address of the server's API.
        kind: `flow_runs` or `task_runs`.
        run_id: the run.
        state: `CRASHED` or `CANCELLED`.
        message: why.
    """
    wanted = {"type": state, "name": state.capitalize(), "message": message}
    answer = ask(f"{api}/{kind}/{run_id}/set_state", {"state": wanted, "force": True})
    return bool(answer) and answer.get("status") == "ACCEPT"


def _authorization(is_prefect: bool) -> dict[str, str]:
    """Return the header of a server that wants a name and password, from where its client reads."""
    if is_prefect:
        names = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
        secret = next(filter(None, map(os.environ.get, names)), "")
    else:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        secret = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}" if user else ""
    coded = base64.b64encode(secret.encode()).decode()
    return {"Authorization": f"Basic {coded}"} if secret else {}
