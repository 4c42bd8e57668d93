"""Forms of the deployments: their fields, and what they refuse before a run exists."""

import re
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows import stages
from flows.full_pipeline import full_pipeline
from longred.config import RunConfig, describe
from longred.config.section import section_in
from longred.errors import ConfigError
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
    assert problem == (
        "'../../etc' does not match 'latest, or the id of a run as `longred show` has it'"
    )
    (problem,) = problems(flow, {"overrides": ["nonsense.key=1"]})
    assert problem == (
        f"'nonsense.key=1' does not match '{stage}.key=value, with a key that "
        f"`longred config {stage}` prints'"
    )


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_names_its_keys_and_an_example_that_it_accepts(stage: str) -> None:
    flow = getattr(stages, stage)
    description = flow.parameters.properties["overrides"]["description"]
    _, _, listed = description.partition("explains the keys: ")
    names = [key.name.removeprefix(f"{stage}.") for key in describe.keys(stage)]
    assert listed.rstrip(".").split(", ") == names
    (example,) = re.findall(r"such as `([^`]*)`", description)
    assert problems(flow, {"overrides": [example]}) == []
    run = flow.parameters.properties["run"]["description"]
    assert problems(flow, {"run": re.findall(r"`([^`]*)`", run)[0]}) == []


def test_the_pipeline_names_the_sections_and_an_example_that_it_accepts() -> None:
    properties = full_pipeline.parameters.properties
    description = properties["overrides"]["description"]
    for name, field in RunConfig.model_fields.items():
        assert section_in(field.annotation) is None or re.search(rf"\b{name}\b", description)
    (example,) = re.findall(r"such as `([^`]*)`", description)
    assert problems(full_pipeline, {"overrides": [example]}) == []
    assert all("such as `" in each["description"] for each in properties.values())


def test_the_forms_accept_every_key() -> None:
    for key in describe.keys(""):
        assert problems(full_pipeline, {"overrides": [key.example]}) == [], key.name
        stage = key.name.partition(".")[0]
        if stage in STAGES[1:]:
            assert problems(getattr(stages, stage), {"overrides": [key.example]}) == [], key.name


@pytest.mark.parametrize(
    ("run", "override", "message"),
    [
        ("../../etc", None, "run: '../../etc' is neither `latest` nor an id"),
        ("latest", "training.lerning_rate=1", "did you mean training.learning_rate"),
        ("latest", "data.num_tokens=1", "only settings of training can change here"),
    ],
)
def test_a_flow_refuses_by_itself_and_names_the_nearest_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, override: str | None, message: str
) -> None:
    monkeypatch.setenv("LONGRED_STORE", str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        stages.training.fn(run, [override] if override else [])
    assert not (tmp_path / "store").exists()


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
        ("extension.windows.0.target_window=512", True),
        ("extension.windows.0={target_window: 512}", True),
        ("extension.target_window=512", False),
        ("training.keep_steps.0=1", True),
        ("training.learning_rate.0=1", False),
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
