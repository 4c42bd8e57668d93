"""The whole method as one Prefect flow, from a recipe to a report; `composition` is its body."""

from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.composition import run_stages
from flows.flow_run import HOOKS, current_flow_run
from longred.config import key_pattern
from longred.runs.scope import STAGES, WHAT_CHANGED

# The deployment's form refuses a wrong value before a flow run exists.
Overrides = list[Annotated[str, Field(pattern=key_pattern())]]
StartFrom = Literal[(WHAT_CHANGED, *STAGES[1:])]


@flow(name="longred", flow_run_name="{recipe}", persist_result=False, **HOOKS)
def full_pipeline(
    recipe: str = "demo",
    overrides: Overrides = [],  # noqa: B006 - Prefect shows the default
    start_from: StartFrom = WHAT_CHANGED,
) -> str:
    """Extend a model's context window and restore its short-text skill.

    Args:
        recipe: name of a packaged recipe, path of a YAML file, or the id of an earlier run (or
            `latest`) to use its settings.
        overrides: changes to the recipe, each `section.key=value`.
        start_from: rebuild this stage and all later ones, even if nothing changed.

    Returns:
        The id of the run, as accepted by `longred show`.
    """
    return run_stages(recipe, overrides, start_from, **current_flow_run())
