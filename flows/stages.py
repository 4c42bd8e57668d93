"""One flow per stage: the pipeline with this stage alone, on an earlier run's artifacts.

Earlier stages are reused, later ones are recorded as stale. `deployments/prefect.yaml` names these
flows as entrypoints.
"""

from typing import Any

from prefect import Flow, flow

from flows.flow_run import HOOKS
from flows.forms import (
    EXAMPLE_RUN,
    EarlierRun,
    check_stage_form,
    overrides_of,
    overrides_text,
)
from flows.full_pipeline import full_pipeline
from longred.runs.scope import Scope
from longred.runs.session import run_options


def stage_flow(stage: str, summary: str) -> Flow[Any, str]:
    """Create the flow of one stage; all share one name, so that Prefect shows them in one list."""
    Overrides = overrides_of(stage)

    def make_alone(run: EarlierRun = "latest", overrides: Overrides = []) -> str:  # noqa: B006
        check_stage_form(stage, run, overrides)
        with run_options(scope=Scope(only=stage)):
            return full_pipeline.fn(run, overrides)

    make_alone.__name__ = make_alone.__qualname__ = stage
    # Prefect shows the descriptions of the parameters in its form.
    make_alone.__doc__ = f"""{summary}

    Args:
        run: id of the earlier run to start from, such as `{EXAMPLE_RUN}`, or `latest`.
        overrides: {overrides_text(stage)}

    Returns:
        The id of the new run.
    """
    name, run_name = full_pipeline.name, f"{stage} of {{run}}"
    return flow(name=name, flow_run_name=run_name, persist_result=False, **HOOKS)(make_alone)


data = stage_flow("data", "Fill the long, short and original buckets.")
extension = stage_flow("extension", "Rescale RoPE.")
profiling = stage_flow("profiling", "Measure how far rescaling moved every layer.")
selection = stage_flow("selection", "Choose the layers to distil.")
training = stage_flow("training", "Train the method's student and its baselines.")
evaluation = stage_flow("evaluation", "Evaluate every model on the same questions.")
report = stage_flow("report", "Compare the models: tables, plots and one page.")
