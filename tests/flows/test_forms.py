"""Forms of the deployments: their fields, and what they refuse before a run exists."""

import re
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows import stages
from flows.pipeline import full_pipeline
from longred.runs.scope import STAGES, WHAT_CHANGED


def problems(flow: Any, parameters: dict[str, Any]) -> list[str]:
    """Return the errors that Prefect's server would report for the parameters of a new run."""
    schema = flow.parameters.model_dump()
    return [error.message for error in validate(parameters, schema)]


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_asks_for_a_run_and_changes_to_its_own_section(stage: str) -> None:
    flow = getattr(stages, stage)
    properties = flow.parameters.properties
    assert list(properties) == ["run", "overrides"]
    assert all(each["description"] and "default" in each for each in properties.values())
    assert problems(flow, {"run": "latest", "overrides": []}) == []
    assert problems(flow, {"run": "20261124-061525-demo-2e11"}) == []
    (problem,) = problems(flow, {"run": "../../etc"})
    assert "../../etc" in problem
    (problem,) = problems(flow, {"overrides": ["nonsense.key=1"]})
    assert "nonsense.key" in problem
    assert f"^{stage}" in problem


@pytest.mark.parametrize(
    ("override", "is_known"),
    [
        ("evaluation.ruler.lengths=[256]", True),
        ("evaluation.ruler.lengths.0=256", True),
        ("evaluation.ruler=null", True),
        ("evaluation.rulr.lengths=[256]", False),
        ("evaluation.ruler.lenths=[256]", False),
        ("evaluation.seed=1", False),
        ("training.num_steps=1", False),
        ("evaluation.ruler.lengths", False),
    ],
)
def test_a_stage_refuses_keys_that_are_not_its_own(override: str, is_known: bool) -> None:
    assert bool(problems(stages.evaluation, {"overrides": [override]})) is not is_known


@pytest.mark.parametrize(
    ("override", "is_known"),
    [
        ("seed=1", True),
        ("data.sources.0.path=/x", True),
        ("data.sources.0.pth=/x", False),
        ("data.ratio.long=2", True),
        ("training.learning_rate=1e-4", True),
        ("training.learning_rat=1e-4", False),
        ("store.path=/elsewhere", True),
    ],
)
def test_the_pipeline_refuses_unknown_keys_at_any_depth(override: str, is_known: bool) -> None:
    assert bool(problems(full_pipeline, {"overrides": [override]})) is not is_known


def test_the_pipeline_starts_from_a_stage_of_a_list() -> None:
    choices = full_pipeline.parameters.properties["start_from"]["enum"]
    assert choices == [WHAT_CHANGED, *STAGES[1:]]
    assert problems(full_pipeline, {"start_from": "training"}) == []
    assert problems(full_pipeline, {"start_from": "trainig"})
    assert re.fullmatch(r"[a-z ]+", full_pipeline.parameters.properties["start_from"]["default"])
