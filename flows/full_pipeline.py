"""The pipeline as one Prefect flow, which the deployment runs; its body is `pipeline`."""

from typing import Literal

from prefect import flow

from flows.flow_run import HOOKS, current_flow_run
from flows.forms import overrides_of
from flows.pipeline import run_stages
from longred.runs.scope import STAGES, WHAT_CHANGED

Overrides = overrides_of()
StartFrom = Literal[(WHAT_CHANGED, *STAGES[1:])]


@flow(name="longred", flow_run_name="{recipe}", persist_result=False, **HOOKS)
def full_pipeline(
    recipe: str = "demo",
    overrides: Overrides = [],  # noqa: B006 - Prefect shows the default
    start_from: StartFrom = WHAT_CHANGED,
) -> str:
    """Extend a model's context window and restore its short-text skill.

    Args:
        recipe: name of a packaged recipe such as `demo`, path of a YAML file where the worker
            runs, or the id of an earlier run (or `latest`) to use its settings.
        overrides: changes to the recipe, one in each item, such as `training.num_steps=100`.
            Sections are model, attention, data, extension, profiling, selection, training,
            evaluation, report, store and tracking; `longred config` explains their keys.
        start_from: stage such as `training` that is rebuilt with all later ones, even if nothing
            changed; by default finished stages are reused.

    Returns:
        The id of the run, as accepted by `longred show`.
    """
    return run_stages(recipe, overrides, start_from, **current_flow_run())
