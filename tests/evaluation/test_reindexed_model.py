"""Reference rows without training: the original at other positions, with results of their own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.attention.reindexed import SCHEMES
from longred.config import EvaluationConfig, load_recipe
from longred.errors import ConfigError
from longred.evaluation.evaluate import evaluate
from longred.evaluation.plan import parity_run, plan
from longred.stages import REINDEXINGS, evaluate_model
from longred.stages.checks import Preflight, _check_evaluation
from longred.store.artifacts import Artifact, Store

Scores = Callable[..., Any]


@pytest.fixture(scope="module")
def scores(
    config: EvaluationConfig, evaluated_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Scores:
    """Evaluate and return scores.json; results are kept in one store."""
    store = Store(tmp_path_factory.mktemp("store"))

    def run(name: str, place: Store = store, used: EvaluationConfig = config) -> Any:
        reindexing = name if name in REINDEXINGS else ""
        checkpoint = f"c0ffee{reindexing}"
        model = evaluated_model(used, name=name, checkpoint=checkpoint, reindexing=reindexing)
        folder, work = tmp_path_factory.mktemp("scores"), tmp_path_factory.mktemp("work")
        evaluate(model, folder, work, store=place)
        answers = {
            path.name: [json.loads(line)["got"] for line in path.read_text().splitlines()]
            for path in (folder / "samples").glob("ruler-niah*.jsonl")
        }
        return json.loads((folder / "scores.json").read_text()), answers

    return run


def test_names_are_those_of_the_schemes() -> None:
    assert tuple(SCHEMES) == REINDEXINGS


def test_only_text_beyond_the_window_is_answered_otherwise(scores: Scores) -> None:
    plain, plain_answers = scores("original")
    found, answers = scores("dual-chunk")
    # Within the original window all distances are true.
    assert found["short"] == plain["short"]
    assert found["nats_per_token"] == plain["nats_per_token"]
    assert (found["model"], found["similarity"]) == ("dual-chunk", None)
    assert plain["similarity"]["last"] == pytest.approx(1.0)
    # Random models answer at random: other attention gives other answers.
    assert answers.keys() == plain_answers.keys()
    assert answers != plain_answers
    assert scores("self-extend")[1] not in (plain_answers, answers)


@pytest.mark.slow
def test_several_processes_attend_by_it_too(
    scores: Scores, config: EvaluationConfig, tmp_path: Path
) -> None:
    two = config.model_copy(update={"num_processes": 2})
    assert scores("self-extend", Store(tmp_path), two) == scores("self-extend")


def test_vllm_does_not_generate_for_it(config: EvaluationConfig, evaluated_model: Any) -> None:
    used = config.model_copy(update={"backend": "vllm"})
    model = evaluated_model(used, reindexing="self-extend", checkpoint="other")
    assert model.lm is model.transformers_lm
    assert parity_run(model) is None
    assert "similarity" not in {run.key for run in plan(model)}


class Identities(Store):
    """Records what would identify an artifact, and makes none."""

    def build(self, stage: str, values: Any, inputs: Any, make: Any, version: int = 1) -> Artifact:
        return Artifact(stage, self.digest(stage, values, inputs, version), "", reused=False)


def test_each_is_identified_by_its_name_and_windows(
    config: EvaluationConfig, tiny_model_folder: Path, tmp_path: Path
) -> None:
    base = Artifact("model", "base", str(tiny_model_folder), reused=True)
    other = Artifact("other", "other", str(tmp_path), reused=True)
    store = Identities(tmp_path)

    def digest(name: str, used: EvaluationConfig = config) -> str:
        return evaluate_model(used, name, base, base, other, other, store=store).digest

    found = {digest(name) for name in ("original", *REINDEXINGS)}
    assert len(found) == 3
    wider = config.model_copy(update={"target_window": 1024})
    assert digest("self-extend", wider) not in found
    more = config.model_copy(update={"references": ["original", "self-extend"]})
    assert digest("original", more) == digest("original")


@pytest.fixture
def rescaled(tiny_model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "rescaled"
    shutil.copytree(tiny_model_folder, folder)
    values = json.loads((folder / "config.json").read_text())
    values["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


MESSAGE = r"evaluation\.references: dual-chunk needs .* has RoPE of type linear; leave dual-chunk"


def test_models_of_other_positions_are_refused_before_a_run(rescaled: Path) -> None:
    changes = [f"model.path={rescaled}", "evaluation.references=[original, dual-chunk]"]
    with pytest.raises(ConfigError, match=MESSAGE):
        _check_evaluation(Preflight(load_recipe("demo", changes)))


def test_and_when_they_are_loaded(
    rescaled: Path, config: EvaluationConfig, evaluated_model: Any
) -> None:
    model = evaluated_model(config, model=rescaled, reindexing="dual-chunk")
    with pytest.raises(ConfigError, match=MESSAGE):
        _ = model.loaded
