"""Each stage alone, on an earlier run's settings and artifacts: the pipeline with one stage made.

What comes before the stage is reused, what comes after it is recorded as stale.
"""

from collections.abc import Callable
from typing import Any

from prefect import Flow, flow

from flows.forms import EarlierRun, changes_to
from flows.notify import HOOKS
from flows.pipeline import full_pipeline
from longred.runs.scope import Scope
from longred.runs.session import run_options

ARGUMENTS = """

Args:
    run: the id of the earlier run to start from, or `latest`.
    overrides: changes to what it was made with, each `section.key=value`.

Returns:
    The id of the new run.
"""


def stage_flow(function: Callable[..., str]) -> Flow[Any, str]:
    """Make a flow of a stage's function; all are one flow to Prefect, so that it shows one list."""
    stage = function.__name__
    function.__doc__ = f"{function.__doc__}{ARGUMENTS}"
    name, run_name = full_pipeline.name, f"{stage} of {{run}}"
    return flow(name=name, flow_run_name=run_name, persist_result=False, **HOOKS)(function)


def make_alone(stage: str, run: str, overrides: list[str]) -> str:
    """Make one stage again on what an earlier run has made."""
    with run_options(scope=Scope(only=stage)):
        return full_pipeline.fn(run, overrides)


@stage_flow
def data(run: EarlierRun = "latest", overrides: changes_to("data") = []) -> str:  # noqa: B006
    """Fill the long, short and original buckets."""
    return make_alone("data", run, overrides)


@stage_flow
def extension(run: EarlierRun = "latest", overrides: changes_to("extension") = []) -> str:  # noqa: B006
    """Rescale RoPE."""
    return make_alone("extension", run, overrides)


@stage_flow
def profiling(run: EarlierRun = "latest", overrides: changes_to("profiling") = []) -> str:  # noqa: B006
    """Measure how far rescaling moved every layer."""
    return make_alone("profiling", run, overrides)


@stage_flow
def selection(run: EarlierRun = "latest", overrides: changes_to("selection") = []) -> str:  # noqa: B006
    """Choose the layers to distil."""
    return make_alone("selection", run, overrides)


@stage_flow
def training(run: EarlierRun = "latest", overrides: changes_to("training") = []) -> str:  # noqa: B006
    """Train the method's student and its baselines'."""
    return make_alone("training", run, overrides)


@stage_flow
def evaluation(run: EarlierRun = "latest", overrides: changes_to("evaluation") = []) -> str:  # noqa: B006
    """Ask every model the same questions."""
    return make_alone("evaluation", run, overrides)


@stage_flow
def report(run: EarlierRun = "latest", overrides: changes_to("report") = []) -> str:  # noqa: B006
    """Compare the models: tables, plots and one page."""
    return make_alone("report", run, overrides)
