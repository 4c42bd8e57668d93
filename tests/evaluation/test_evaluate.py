"""Evaluation of one model: results, interruption, processes, batch sizes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longred.config import EvaluationConfig
from longred.errors import LongredError, LostProcessError, MismatchError, StorageError
from longred.evaluation import model as model_module
from longred.evaluation import parallel, plan
from longred.evaluation.evaluate import evaluate
from longred.evaluation.samples import freeze
from longred.store.artifacts import Store

Run = Callable[..., Path]


@pytest.fixture(scope="session")
def run(
    config: EvaluationConfig, evaluated_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    def call(
        store: Path | None = None, used: EvaluationConfig = config, on: Any = None, **changes: Any
    ) -> Path:
        folder, work = tmp_path_factory.mktemp("scores"), tmp_path_factory.mktemp("work")
        place = Store(store or tmp_path_factory.mktemp("store"))
        evaluate(evaluated_model(used, **changes), folder, work, store=place, on_progress=on)
        return folder

    return call


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished-store")


@pytest.fixture(scope="session")
def finished(run: Run, finished_store: Path) -> Path:
    return run(finished_store)


def read(folder: Path) -> Any:
    return json.loads((folder / "scores.json").read_text())


def results(store: Path) -> dict[str, int]:
    """Return the results in a store with the time of their commit."""
    found = {}
    for path in (store / "artifacts").glob("evaluation-*/MANIFEST.json"):
        values = json.loads(path.read_text())["values"]
        if values["part"] == "unit":
            key = values.get("measure") or f"{values['task']}-{values['length']}"
            found[f"{key}-{path.parent.name}"] = path.stat().st_mtime_ns
    return found


def test_scores_hold_every_task(finished: Path) -> None:
    scores = read(finished)
    assert set(scores["short"]) == {"cloze", "continuation", "brackets", "key_recall"}
    assert set(scores["ruler"]) == {"384", "512"}
    assert scores["short"]["key_recall"]["capacity"] == "reading"
    assert scores["short"]["continuation"]["capacity"] == "general"
    entry = scores["ruler"]["384"]["niah_single_1"]
    assert (entry["score"], entry["num_samples"]) == (0.0, 3)
    assert 0 <= entry["unparsed"] <= 3
    assert entry["interval"] == pytest.approx([0.0, 69.0], abs=0.1)
    assert entry["truncated"] == 0
    assert 0.8 < entry["fill"] <= 1
    assert 0 <= entry["eos_rate"] <= 100
    assert 0 < entry["output_tokens"] <= 16
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
    points = [(line["key"], line["step"]) for line in metrics]
    assert {("ruler/niah_single_1", 384), ("ruler/niah_single_1", 512), ("short/cloze", 0)} <= set(
        points
    )
    assert len(points) == len(set(points))


def test_truncated_prompts_are_said_once_for_a_model(
    finished: Path,
    finished_store: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(finished_store)
    assert "lost their beginning" not in caplog.text
    monkeypatch.setattr("longred.evaluation.results.num_truncated", lambda answers: 2)
    run(finished_store)
    (message,) = (each.getMessage() for each in caplog.records if each.levelname == "WARNING")
    assert message.startswith("original: prompts longer than the window of 512 tokens lost")
    assert "cloze 2 of 4" in message
    assert "and 3 more tasks;" in message


@pytest.mark.medium
def test_the_size_of_batches_changes_nothing(
    finished: Path, run: Run, config: EvaluationConfig
) -> None:
    other = run(used=config.model_copy(update={"batch_tokens": 1}))
    for path in sorted((finished / "samples").iterdir()):
        for one, two in zip(path.open(), (other / "samples" / path.name).open(), strict=True):
            first, second = json.loads(one), json.loads(two)
            assert first.pop("loglikelihoods", []) == pytest.approx(
                second.pop("loglikelihoods", []), abs=1e-3
            )
            assert first == second


@pytest.mark.medium
def test_killed_run_repeats_one_unit(
    run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = plan._drift

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "_drift", die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = results(tmp_path)
    assert len(before) == 9
    monkeypatch.setattr(plan, "_drift", last)
    seen: list[tuple[int, int, str]] = []
    folder = run(tmp_path, on=lambda *step: seen.append(step))
    after = results(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [name.partition("-")[0] for name in set(after) - set(before)] == ["drift"]
    assert read(folder) == read(finished)
    assert [step[0] for step in seen] == list(range(1, 11))


@pytest.mark.medium
def test_other_lengths_and_models_redo_nothing(
    run: Run,
    finished: Path,
    finished_store: Path,
    config: EvaluationConfig,
    tiny_model_folder: Path,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    """Adding a length or another checkpoint to a store changes no existing result."""
    before = results(finished_store)
    ruler = config.ruler.model_copy(update={"lengths": [384, 448, 512]})
    more = config.model_copy(update={"ruler": ruler})
    freeze(more, tiny_model_folder, data_folder, tmp_path, store=Store(finished_store))
    folder = run(finished_store, used=more, samples=tmp_path)
    after = results(finished_store)
    assert {name: after[name] for name in before} == before
    new = {name.rpartition("-evaluation")[0] for name in set(after) - set(before)}
    assert new == {"niah_single_1-448", "niah_single_2-448"}
    assert read(folder)["ruler"]["384"] == read(finished)["ruler"]["384"]

    run(finished_store, name="other", checkpoint="beef")
    other = results(finished_store)
    assert len(other) == len(after) + 10
    assert {name: other[name] for name in after} == after


@pytest.mark.slow
def test_several_processes_give_the_same(
    run: Run, finished: Path, config: EvaluationConfig, tmp_path: Path
) -> None:
    folder = run(tmp_path, used=config.model_copy(update={"num_processes": 2}))
    assert read(folder) == read(finished)
    assert len(results(tmp_path)) == 10


@pytest.mark.slow
def test_a_process_that_fails_keeps_what_the_others_finished(
    run: Run, samples_folder: Path, config: EvaluationConfig, tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    shutil.copytree(samples_folder, samples)
    (samples / "short" / "cloze.jsonl").write_text("{}\n")
    with pytest.raises(MismatchError, match=r"process-\d of the evaluation .*cloze.* was changed"):
        run(tmp_path, used=config.model_copy(update={"num_processes": 2}), samples=samples)
    assert len(results(tmp_path)) >= 4


PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from longred.store.artifacts import Store
from longred.config import EvaluationConfig
from longred.evaluation.evaluate import evaluate
from longred.evaluation.model import EvaluatedModel

values = json.loads(sys.argv[1])
paths = {key: Path(value) for key, value in values["paths"].items()}
config = EvaluationConfig.model_validate(values["config"])
model = EvaluatedModel(config=config, name="original", checkpoint="c", original_digest="c", **paths)
folder, work = Path(sys.argv[2]) / "folder", Path(sys.argv[2]) / "work"
folder.mkdir(); work.mkdir(exist_ok=True)

def stop(done, total, text):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(model, folder, work, store=Store(sys.argv[2]), on_progress=stop)
"""


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing_that_was_finished(
    run: Run,
    finished: Path,
    config: EvaluationConfig,
    tiny_model_folder: Path,
    samples_folder: Path,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    folders = {"model": tiny_model_folder, "original": tiny_model_folder}
    folders |= {"samples": samples_folder, "data": data_folder}
    values = {
        "config": config.model_dump(mode="json"),
        "paths": {key: str(value) for key, value in folders.items()},
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(values), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    before = results(tmp_path)
    assert len(before) == 5
    folder = run(tmp_path, checkpoint="c", original_digest="c")
    after = results(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 10
    assert read(folder)["short"] == read(finished)["short"]


@pytest.mark.medium
def test_a_process_loads_its_model_once(
    config: EvaluationConfig,
    evaluated_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Similarity needs two models, for which the loaded one makes room: it comes last."""
    model = evaluated_model(config)
    (share,) = parallel.divide(plan.plan(model), 1)
    fields = ("name", "model", "checkpoint", "original", "original_digest", "samples", "data")
    job = {
        "config": config.model_dump(mode="json"),
        "request": {name: str(getattr(model, name)) for name in fields},
        "store": str(tmp_path / "store"),
        "keys": [run.key for run in share],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    real, loads = model_module.load_for, []

    def load(*args: Any, **settings: Any) -> Any:
        loads.append(args)
        return real(*args, **settings)

    monkeypatch.setattr(model_module, "load_for", load)
    parallel.run_job(tmp_path / "job.json")
    assert len(results(tmp_path / "store")) == 10
    assert len(loads) == 3


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            LostProcessError,
            "was killed by signal 9",
        ),
        ("raise RuntimeError('CUDA error')", LostProcessError, "ended with 1;.*CUDA error"),
        (
            "import sys; sys.stderr.write('longred: no disk'); sys.exit(4)",
            StorageError,
            "ended with 4;.*no disk",
        ),
    ],
)
def test_a_process_that_ends_early_is_named_and_may_be_tried_again(
    program: str,
    error: type[LongredError],
    message: str,
    config: EvaluationConfig,
    evaluated_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect tries a task again after a lost process, and after no other error."""

    def start(job: Path, *_: Any) -> Any:
        with job.with_suffix(".log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)

    monkeypatch.setattr(parallel, "_start", start)
    model = evaluated_model(config.model_copy(update={"num_processes": 2}))
    with pytest.raises(error, match=rf"(?s)process-0 of the evaluation {message}") as info:
        parallel.finish_in_parallel(model, plan.plan(model), tmp_path, store=Store(tmp_path))
    assert type(info.value) is error


@pytest.mark.medium
def test_global_generators_are_left_alone(run: Run) -> None:
    # Leftover threads of earlier tests (clients of servers) sometimes draw from Python's generator.
    # So the test passes if one of three attempts leaves the generator untouched.
    found = []
    for _ in range(3):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        run()
        found.append(random.random())
        assert np.random.random() == np.random.RandomState(5).random()
        assert torch.equal(torch.get_rng_state(), state)
        if found[-1] == random.Random(5).random():
            return
    pytest.fail(f"Python's generator was used: {found}")


def test_other_tokenizer_is_refused(run: Run, samples_folder: Path, tmp_path: Path) -> None:
    index = json.loads((samples_folder / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "tokenizer_sha256": "0"}))
    with pytest.raises(MismatchError, match="another tokenizer"):
        run(samples=tmp_path)
