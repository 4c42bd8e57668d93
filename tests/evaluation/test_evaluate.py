"""One model through everything: results, interruption, and what can differ between batch sizes."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longred.config import EvaluationConfig
from longred.errors import MismatchError
from longred.evaluation import evaluate as room
from longred.evaluation.evaluate import evaluate, summary

Run = Callable[..., Path]


@pytest.fixture(scope="session")
def run(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    samples_folder: Path,
    data_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    def call(work: Path | None = None, used: EvaluationConfig = config, **more: Any) -> Path:
        folder = tmp_path_factory.mktemp("scores")
        work = work or tmp_path_factory.mktemp("work")
        evaluate(
            used,
            "original",
            tiny_model_folder,
            tiny_model_folder,
            samples_folder,
            data_folder,
            folder,
            work,
            **more,
        )
        return folder

    return call


@pytest.fixture(scope="session")
def finished(run: Run) -> Path:
    return run()


def read(folder: Path) -> Any:
    return json.loads((folder / "scores.json").read_text())


def test_scores_hold_every_task(finished: Path) -> None:
    scores = read(finished)
    assert set(scores["short"]) == {"cloze", "continuation", "brackets", "key_recall"}
    assert set(scores["ruler"]) == {"384", "512"}
    assert scores["short"]["key_recall"]["capacity"] == "reading"
    assert scores["short"]["continuation"]["capacity"] == "general"
    entry = scores["ruler"]["384"]["niah_single_1"]
    assert entry == {"score": 0.0, "stderr": 0.0, "num_samples": 3, "chance": 0.0}
    assert scores["similarity"]["per_layer"] == pytest.approx([1.0] * 3, abs=1e-6)
    assert scores["nats_per_token"] == pytest.approx(np.log(512), rel=0.2)


def test_answers_and_metrics_are_written(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "samples").iterdir())
    assert len(names) == 8
    assert "ruler-niah_single_2-512.jsonl" in names
    rows = [json.loads(r) for r in (finished / "samples" / "short-cloze.jsonl").open()]
    assert [row["id"] for row in rows] == [f"cloze-{i}" for i in range(4)]
    assert all({"id", "expected", "got", "score"} <= set(row) for row in rows)
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert {("ruler/niah_single_1", 384), ("ruler/niah_single_1", 512), ("short/cloze", 0)} <= {
        (line["key"], line["step"]) for line in metrics
    }


def test_batch_size_changes_nothing(finished: Path, run: Run, config: EvaluationConfig) -> None:
    other = run(used=config.model_copy(update={"batch_size": 1}))
    for path in sorted((finished / "samples").iterdir()):
        for one, two in zip(path.open(), (other / "samples" / path.name).open(), strict=True):
            first, second = json.loads(one), json.loads(two)
            assert first.pop("loglikelihoods", []) == pytest.approx(
                second.pop("loglikelihoods", []), abs=1e-3
            )
            assert first == second


def test_killed_run_repeats_one_unit(
    run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = room._similarity

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_similarity", die)
    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path)
    units = tmp_path / "units"
    before = {path.name: path.stat().st_mtime_ns for path in units.iterdir()}
    assert len(before) == 9
    monkeypatch.setattr(room, "_similarity", last)
    seen: list[tuple[int, int, str]] = []
    folder = run(work=tmp_path, on_progress=lambda *step: seen.append(step))
    after = {path.name: path.stat().st_mtime_ns for path in units.iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"similarity.json"}
    assert read(folder) == read(finished)
    assert [step[0] for step in seen] == list(range(1, 11))


def test_global_generators_are_left_alone(run: Run) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    wanted = random.Random(5).random()
    state = torch.get_rng_state()
    run()
    assert random.random() == wanted
    assert np.random.random() == np.random.RandomState(5).random()
    assert torch.equal(torch.get_rng_state(), state)


def test_other_tokenizer_is_refused(
    config: EvaluationConfig, samples_folder: Path, tmp_path: Path
) -> None:
    index = json.loads((samples_folder / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "tokenizer_sha256": "0"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MismatchError, match="another tokenizer"):
        evaluate(config, "x", tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)


def test_summary_has_binomial_error() -> None:
    found = summary([100.0] * 30 + [0.0] * 70, 25.0)
    assert found["score"] == pytest.approx(30.0)
    assert found["stderr"] == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 100))
