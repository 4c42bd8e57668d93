"""Which Prefect flow run this is, for the record of the run that it makes."""

from typing import TypedDict

from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.utilities.urls import url_for


class FlowRun(TypedDict):
    """What `open_run` is told of a flow run; all None outside of one."""

    prefect_flow_run_id: str | None
    prefect_url: str | None


def current_flow_run() -> FlowRun:
    """Return the flow run's id and, where its server has pages, the address of its own."""
    identity = flow_run.id
    has_page = identity and PREFECT_UI_URL.value()
    page = url_for("flow-run", obj_id=identity) if has_page else None
    return {"prefect_flow_run_id": identity, "prefect_url": page}
