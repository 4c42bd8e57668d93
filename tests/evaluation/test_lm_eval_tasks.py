"""Tasks of lm-eval on local files: same prompts and scores as its own command."""

import json
import logging
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longred.config import EvaluationConfig
from longred.errors import ConfigError, MismatchError, PreflightError
from longred.evaluation import lm_eval_catalog, lm_eval_tasks
from longred.evaluation.lm import TransformersLM
from longred.evaluation.samples import freeze
from longred.evaluation.suites import SuiteTask
from longred.evaluation.tasks import read_index, read_tasks
from longred.models.hub import HUB
from longred.models.load import load_model
from longred.store.artifacts import Store

NUM_QUESTIONS = 6


def write_questions(path: Path, count: int, first: int = 0) -> Path:
    """Write arithmetic questions in the form of GSM8K."""
    lines = []
    for i in range(first, first + count):
        a, b = i + 3, 2 * i + 1
        answer = f"{a} and {b} are <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"
        lines.append({"question": f"Ann has {a} pens and buys {b}. How many?", "answer": answer})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "test": str(write_questions(tmp_path / "test.jsonl", NUM_QUESTIONS)),
        "train": str(write_questions(tmp_path / "train.jsonl", 8, first=100)),
    }


def gsm8k(files: dict[str, str], **changes: Any) -> SuiteTask:
    values = {
        "name": "gsm8k",
        "capacity": "math",
        "source": "lm-eval",
        "task": "gsm8k",
        "metric": "exact_match",
        "filter": "flexible-extract",
        "num_fewshot": 2,
        "data_files": files,
    }
    return SuiteTask.model_validate({**values, **changes})


def settings(entry: SuiteTask, limit: int | None = None) -> dict[str, Any]:
    (found,) = lm_eval_catalog.leaf_settings(entry, limit=limit, allow_code=False).values()
    return found


def write_suite(path: Path, files: dict[str, str], **changes: Any) -> Path:
    entry = gsm8k(files, **changes).model_dump(exclude={"name", "capacity"})
    path.write_text(json.dumps({"capacities": {"math": {"gsm8k": entry}}}))
    return path


@pytest.mark.medium
def test_scores_are_those_of_the_harness(
    files: dict[str, str],
    config: EvaluationConfig,
    tiny_model_folder: Path,
    tokenizer: Any,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    short = config.short.model_copy(update={"suite": str(write_suite(tmp_path / "s.yaml", files))})
    folder = tmp_path / "samples"
    folder.mkdir()
    used = config.model_copy(update={"short": short})
    freeze(used, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    task = next(task for task in read_tasks(folder) if task.name == "gsm8k")
    assert (task.num_samples, task.capacity, task.part) == (NUM_QUESTIONS, "math", None)

    torch.manual_seed(3)
    random.seed(3)
    state, wanted = torch.get_rng_state(), random.Random(3).random()
    model = load_model(tiny_model_folder)
    lm = TransformersLM(model, tokenizer, max_tokens=512, batch_tokens=1000)
    result, answers = lm_eval_tasks.run_lm_eval_task(lm, task)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.random() == wanted

    their_task = {
        "include": str(lm_eval_catalog.task_file("gsm8k")),
        "task": "gsm8k_local",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "num_fewshot": 2,
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(json.dumps(their_task))
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path / "tasks"))
    lm.reset(task.max_tokens)
    theirs = simple_evaluate(lm, tasks=["gsm8k_local"], task_manager=manager, bootstrap_iters=0)
    rows = [r for r in theirs["samples"]["gsm8k_local"] if r["filter"] == "flexible-extract"]
    prompts = [row["arguments"][0][0] for row in rows]
    assert [sample["input"] for sample in task.read_samples()] == prompts
    assert [answer["got"] for answer in answers] == [row["resps"][0][0][:2000] for row in rows]
    assert [answer["score"] for answer in answers] == [100.0 * r["exact_match"] for r in rows]
    value = theirs["results"]["gsm8k_local"]["exact_match,flexible-extract"]
    assert result["score"] == 100.0 * value
    assert {"eos_rate", "output_tokens", "truncated"} <= set(result)
    assert "Ann has 1" in prompts[0]
    assert prompts[0].count("Question:") == 3


@pytest.mark.medium
def test_changed_data_are_refused(
    files: dict[str, str],
    config: EvaluationConfig,
    tiny_model_folder: Path,
    tokenizer: Any,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    suite = write_suite(tmp_path / "s.yaml", files, num_fewshot=0)
    short = config.short.model_copy(update={"suite": str(suite)})
    folder = tmp_path / "samples"
    folder.mkdir()
    used = config.model_copy(update={"short": short})
    freeze(used, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    task = next(task for task in read_tasks(folder) if task.name == "gsm8k")
    write_questions(Path(files["test"]), NUM_QUESTIONS, first=50)
    model = load_model(tiny_model_folder)
    lm = TransformersLM(model, tokenizer, max_tokens=512, batch_tokens=1000)
    with pytest.raises(MismatchError, match=r"gsm8k: .*test\.jsonl changed since the samples"):
        lm_eval_tasks.run_lm_eval_task(lm, task)
    # Samples hold no right answers.
    path = write_questions(Path(files["test"]), NUM_QUESTIONS)
    path.write_text(path.read_text().replace("#### 4", "#### 5"))
    with pytest.raises(MismatchError, match=r"gsm8k: .*test\.jsonl changed since the samples"):
        lm_eval_tasks.run_lm_eval_task(lm, task)


def test_bad_files_and_settings_are_one_message(files: dict[str, str], tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"lacks the split train, which its 2 examples come from"):
        settings(gsm8k({"test": files["test"]}))
    with pytest.raises(ConfigError, match=r"^gsm8k: data_files\.test: /nowhere/no\.jsonl does not"):
        settings(gsm8k({**files, "test": "/nowhere/no.jsonl"}))
    with pytest.raises(ConfigError, match="gsm8k: has the filters strict-match, flexible-extract"):
        lm_eval_tasks.freeze_leaf(settings(gsm8k(files, filter=None)), tokenizer)
    with pytest.raises(ConfigError, match="has no filter strict; did you mean strict-match"):
        lm_eval_tasks.freeze_leaf(settings(gsm8k(files, filter="strict")), tokenizer)
    with pytest.raises(ConfigError, match="has no metric exact_mach; did you mean exact_match"):
        lm_eval_tasks.freeze_leaf(settings(gsm8k(files, metric="exact_mach")), tokenizer)
    path = Path(files["test"])
    path.write_text(path.read_text() + '{"question": "cut\n')
    place = rf"^gsm8k: data_files\.test: .*test\.jsonl:{NUM_QUESTIONS + 1}: is not valid JSON"
    with pytest.raises(ConfigError, match=place):
        settings(gsm8k(files))
    path.write_text("")
    with pytest.raises(ConfigError, match=r"^gsm8k: data_files\.test: .*test\.jsonl is empty$"):
        settings(gsm8k(files))
    path.write_text('{"query": "What?", "answer": "#### 1"}\n')
    with pytest.raises(
        ConfigError, match=r"'question' is undefined; .*test\.jsonl has the columns"
    ):
        lm_eval_tasks.freeze_leaf(
            settings(gsm8k({"test": files["test"]}, num_fewshot=0)), tokenizer
        )


def test_code_is_run_only_where_it_is_allowed() -> None:
    entry = gsm8k({}, task="humaneval", metric="pass@1", filter="create_test")
    with pytest.raises(PreflightError, match="allow_code_execution: true"):
        settings(entry)


def test_limit_is_the_smaller_one(files: dict[str, str], tokenizer: Any) -> None:
    assert settings(gsm8k(files, limit=3), limit=5)["limit"] == 3
    rows, _ = lm_eval_tasks.freeze_leaf(settings(gsm8k(files), limit=2), tokenizer)
    assert [row["id"] for row in rows] == ["gsm8k-0", "gsm8k-1"]


def test_unreachable_hub_is_asked_once(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import datasets.config
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    waits: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waits.append})
    monkeypatch.setattr(_http, "time", clock)
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    # Nothing listens on port 9, so connections are refused at once, as without a network.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(HUB, "_is_known", False)
    changes = {"suite": "short-core", "on_missing": "error", "tasks": ["piqa", "gsm8k"]}
    used = config.model_copy(update={"short": config.short.model_copy(update=changes)})
    folder = tmp_path / "samples"
    folder.mkdir()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(PreflightError, match="2 of 2 short tasks cannot be evaluated") as caught,
    ):
        freeze(used, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    # No retries: the hub's client waits between them, 23 seconds for a single task.
    assert waits == []
    assert "data_files: {test: /path/to/test.jsonl, train: /path/to/train.jsonl}" in str(
        caught.value
    )
    assert sum("cannot be reached" in record.message for record in caplog.records) == 1
    # The error names the tasks, so the log does not.
    assert not any("its data cannot be loaded" in record.message for record in caplog.records)

    coding = used.short.model_copy(update={"suite": "paper", "tasks": ["mbpp"]})
    both = r"mbpp: runs code .*: true where that is safe; and its data cannot be loaded"
    with pytest.raises(PreflightError, match=both):
        freeze(
            used.model_copy(update={"short": coding}),
            tiny_model_folder,
            data_folder,
            folder,
            store=Store(tmp_path),
        )

    skipping = used.short.model_copy(update={"on_missing": "skip"})
    used = used.model_copy(update={"short": skipping})
    freeze(used, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    assert sum("its data cannot be loaded" in record.message for record in caplog.records) == 2
    entries = read_index(folder)["short"]
    assert all("its data cannot be loaded" in entry["unavailable"] for entry in entries.values())
    assert {task.kind for task in read_tasks(folder)} == {"ruler"}
