"""Prompts begin as the tokenizer says: equal to lm-eval's own model class at its defaults."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pydantic import ValidationError

from longred.config import RunConfig
from longred.config.derived import with_derived
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError
from longred.evaluation import lm_eval_catalog, lm_eval_tasks
from longred.evaluation.counting import encode, token_counter
from longred.evaluation.lm import TransformersLM
from longred.evaluation.suites import SuiteTask
from longred.evaluation.tasks import Task, write_lines
from longred.models.load import load_model, load_tokenizer
from longred.store.artifacts import sha256_file

LENGTH = 512
ANIMALS = ("cat", "dog", "cow", "hen", "ant")


@pytest.fixture(params=["adds BOS", "declares BOS", "has no BOS"])
def folder(request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with one of three tokenizers; the first adds the BOS that it declares."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    if request.param == "adds BOS":
        return folder
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "post_processor": None}), encoding="utf-8")
    if request.param == "has no BOS":
        path = folder / "tokenizer_config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**values, "bos_token": None}), encoding="utf-8")
    return folder


def write_tasks(folder: Path) -> dict[str, str]:
    """Write multiple-choice questions in the form of ARC, and questions in that of GSM8K."""
    choices = [
        {
            "question": f"Which of them is {name}?",
            "choices": {"text": [*ANIMALS[:number], *ANIMALS[number:]], "label": list("ABCDE")},
            "answerKey": "ABCDE"[number],
        }
        for number, name in enumerate(ANIMALS)
    ]
    numbers = [{"question": f"What is {n} and 2?", "answer": f"#### {n + 2}"} for n in range(5)]
    files = {"arc_easy": folder / "arc.jsonl", "gsm8k": folder / "gsm8k.jsonl"}
    write_lines(files["arc_easy"], choices)
    write_lines(files["gsm8k"], numbers)
    return {name: str(path) for name, path in files.items()}


def ask(folder: Path, name: str, path: str) -> tuple[list[dict[str, Any]], Any]:
    """Return our answers, and the model that gave them."""
    values = {"arc_easy": {"metric": "acc"}, "gsm8k": {"metric": "exact_match"}}[name]
    filters = {"filter": "flexible-extract"} if name == "gsm8k" else {}
    entry = SuiteTask(
        name=name,
        capacity="any",
        source="lm-eval",
        task=name,
        num_fewshot=0,
        data_files={"test": path},
        **values,
        **filters,
    )
    (settings,) = lm_eval_catalog.leaf_settings(entry, limit=None, allow_code=False).values()
    tokenizer = load_tokenizer(folder)
    rows, frozen = lm_eval_tasks.freeze_leaf(settings, tokenizer)
    samples = folder.parent / f"{name}-samples.jsonl"
    write_lines(samples, rows)
    task = Task(
        kind="short",
        name=name,
        source="lm-eval",
        metric=entry.metric,
        chance=0.0,
        num_samples=len(rows),
        max_tokens=min(LENGTH, frozen["max_tokens"]),
        path=samples,
        sha256=sha256_file(samples),
        settings=settings,
    )
    lm = TransformersLM(load_model(folder), tokenizer, max_tokens=LENGTH)
    return list(lm_eval_tasks.run_lm_eval_task(lm, task).answers), lm


def ask_lm_eval(folder: Path, name: str, path: str) -> list[dict[str, Any]]:
    """Return the rows of lm-eval, with a model that it loads itself, at its defaults."""
    values = {
        "include": str(lm_eval_catalog.task_file(name)),
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": path}},
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
    }
    tasks = folder.parent / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / f"{name}.yaml").write_text(json.dumps(values))
    manager = TaskManager(include_defaults=False, include_path=str(tasks))
    model = HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", max_length=LENGTH, batch_size=3
    )
    theirs = simple_evaluate(
        model, tasks=[f"{name}_local"], num_fewshot=0, task_manager=manager, bootstrap_iters=0
    )
    rows: list[dict[str, Any]] = theirs["samples"][f"{name}_local"]
    return [row for row in rows if row["filter"] in ("none", "flexible-extract")]


@pytest.mark.medium
def test_every_sample_is_that_of_lm_eval_at_its_defaults(folder: Path) -> None:
    files = write_tasks(folder.parent)
    answers, _ = ask(folder, "gsm8k", files["gsm8k"])
    theirs = ask_lm_eval(folder, "gsm8k", files["gsm8k"])
    assert [answer["got"] for answer in answers] == [row["resps"][0][0] for row in theirs]
    assert all(answer["got"] for answer in answers)

    answers, lm = ask(folder, "arc_easy", files["arc_easy"])
    theirs = ask_lm_eval(folder, "arc_easy", files["arc_easy"])
    assert [answer["score"] for answer in answers] == [100.0 * row["acc"] for row in theirs]
    for row in theirs:
        requests = [Instance("loglikelihood", {}, tuple(each), 0) for each in row["arguments"]]
        ours = lm.loglikelihood(requests)
        assert [value for value, _ in ours] == pytest.approx(
            [value for ((value, _),) in row["resps"]], abs=1e-4
        )
        assert [greedy for _, greedy in ours] == [greedy for ((_, greedy),) in row["resps"]]


def test_data_and_evaluation_begin_alike(folder: Path) -> None:
    """Training rows, prompts and the counts of prompts begin as the tokenizer says."""
    tokenizer: Any = load_tokenizer(folder)
    plain = tokenizer("a b", add_special_tokens=False)["input_ids"]
    expected = tokenizer("a b")["input_ids"]
    assert encode(tokenizer, "a b") == expected
    assert token_counter(tokenizer)(["a b"]) == [len(expected)]
    assert TextTokenizer(folder, add_bos=None).encode(["a b"])[0].tolist() == expected
    has_bos = tokenizer.bos_token_id is not None
    for add_bos in (False, *([True] if has_bos else [])):
        start = [tokenizer.bos_token_id] if add_bos else []
        changed: Any = load_tokenizer(folder, add_bos=add_bos)
        assert encode(changed, "a b") == start + plain
        assert TextTokenizer(folder, add_bos=add_bos).encode(["a b"])[0].tolist() == start + plain
    if not has_bos:
        with pytest.raises(ConfigError, match=r"evaluation\.add_bos_token .* no BOS token"):
            load_tokenizer(folder, add_bos=True)


def test_the_evaluation_follows_the_data() -> None:
    values = {
        "name": "bos",
        "original_window": 64,
        "target_window": 128,
        "model": {"path": "demo"},
        "data": {"sources": [{"name": "library", "kind": "library"}], "num_tokens": 10**6},
    }

    def setting(data: bool | None, evaluation: bool | None) -> bool | None:
        given = {
            **values,
            "data": {**values["data"], "add_bos": data},  # type: ignore[dict-item]
            "evaluation": {"add_bos_token": evaluation},
        }
        return RunConfig.model_validate(with_derived(given)).evaluation.add_bos_token

    assert setting(None, None) is None
    assert setting(True, None) is True
    assert setting(False, None) is False
    assert setting(None, False) is False
    with pytest.raises(ValidationError, match=r"evaluation\.add_bos_token: false contradicts data"):
        setting(True, False)
