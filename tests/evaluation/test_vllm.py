"""Answers of an engine other than transformers, and the parity check before its use.

vLLM itself needs a GPU; here a stand-in engine generates token by token, without batches and
padding.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from longred.errors import ConfigError, PreflightError
from longred.evaluation import model as model_module
from longred.evaluation import plan, vllm
from longred.evaluation.evaluate import evaluate
from longred.evaluation.generation import Sampling
from longred.evaluation.lm import TransformersLM
from longred.evaluation.own_tasks import run_own_task
from longred.evaluation.plan import parity_run
from longred.evaluation.runner import Tokens
from longred.evaluation.tasks import Task, read_tasks, write_lines
from longred.evaluation.vllm import MARGIN, VllmEngine, check_parity
from longred.models.extension import write_extension
from longred.models.load import load_model, load_tokenizer
from longred.store.artifacts import Store, sha256_file


class OneByOne:
    """Greedy decoding of one prompt after another.

    Args:
        shift: offset added to every token, to simulate a wrong engine.
    """

    def __init__(self, model: Any, tokenizer: Any, shift: int = 0) -> None:
        self.model, self.tokenizer, self.shift = model, tokenizer, shift
        self.num_prompts = 0

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Tokens], *, max_tokens: int, stop: Sequence[str], **_: Any
    ) -> list[list[int]]:
        self.num_prompts += len(prompts)
        return [self._one(prompt.tolist(), max_tokens, stop) for prompt in prompts]

    def _one(self, row: list[int], max_tokens: int, stop: Sequence[str]) -> list[int]:
        made: list[int] = []
        while len(made) < max_tokens:
            logits = self.model(torch.tensor([row + made])).logits[0, -1]
            made.append((int(logits.argmax()) + self.shift) % len(logits))
            text = self.tokenizer.decode(made)
            if made[-1] == self.tokenizer.eos_token_id or any(word in text for word in stop):
                break
        return made


@pytest.fixture(scope="module")
def task(samples_folder: Path) -> Task:
    found = [t for t in read_tasks(samples_folder) if t.metric == "recall"]
    return min(found, key=lambda task: task.max_tokens)


@pytest.fixture(scope="module")
def reference(tiny_model_folder: Path, tokenizer: Any, task: Task) -> Any:
    model = load_model(tiny_model_folder)
    return TransformersLM(model, tokenizer, max_tokens=task.max_tokens, batch_tokens=2000)


def with_engine(reference: Any, tokenizer: Any, shift: int = 0) -> Any:
    engine = OneByOne(reference.model, tokenizer, shift)
    return TransformersLM(
        reference.model, tokenizer, max_tokens=reference.max_length, engine=engine
    )


def test_an_engine_answers_as_transformers_does(reference: Any, tokenizer: Any, task: Task) -> None:
    other = with_engine(reference, tokenizer)
    assert run_own_task(other, task) == run_own_task(reference, task)
    assert other.engine.num_prompts == task.num_samples


@pytest.fixture(scope="module")
def known(reference: Any, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Fifty questions whose references are the model's own answers."""
    answers = run_own_task(reference, task)
    pairs = [*zip(task.read_samples(), answers, strict=True)] * 50
    # All of one group, as the packaged questions of RULER nearly are.
    samples = [
        {**sample, "id": str(number), "outputs": [answer["got"].strip()], "group": "one"}
        for number, (sample, answer) in enumerate(pairs[:50])
    ]
    path = tmp_path_factory.mktemp("known") / "samples.jsonl"
    write_lines(path, samples)
    return replace(task, path=path, sha256=sha256_file(path), num_samples=50)


def test_equal_scores_pass(reference: Any, tokenizer: Any, known: Task) -> None:
    found = check_parity(reference, with_engine(reference, tokenizer), [known])
    assert (found["points"], found["same_share"], found["num_samples"]) == (0.0, 1.0, 50)
    low, high = found["interval"]
    assert -MARGIN < low < 0 < high < MARGIN


def test_other_scores_are_refused(reference: Any, tokenizer: Any, known: Task) -> None:
    with pytest.raises(PreflightError, match=r"evaluation\.backend: .* differ .* -100\.0 points"):
        check_parity(reference, with_engine(reference, tokenizer, shift=1), [known])


def test_too_few_answers_decide_nothing(reference: Any, tokenizer: Any, task: Task) -> None:
    with pytest.raises(PreflightError, match=r"\+0\.0 points .* ask 50 samples or more"):
        check_parity(reference, with_engine(reference, tokenizer), [task])


def test_samples_that_are_drawn_are_refused() -> None:
    engine = VllmEngine.__new__(VllmEngine)
    with pytest.raises(ConfigError, match=r"evaluation\.backend: vllm generates greedily"):
        engine.generate([np.array([1])], max_tokens=2, stop=[], sampling=Sampling(temperature=1.0))


class FakeVllm:
    """Stands for vLLM's package: answers as transformers does, and records what it is asked."""

    def __init__(self, folder: Path, events: list[Any]) -> None:
        self.engine = OneByOne(load_model(folder), load_tokenizer(folder))
        self.events = events

    def LLM(self, **settings: Any) -> Any:
        self.events.append(settings)
        return self

    def SamplingParams(self, **settings: Any) -> Any:
        return settings

    def generate(self, rows: Any, settings: Any, *, use_tqdm: bool) -> list[Any]:
        prompts = [np.array(row["prompt_token_ids"]) for row in rows]
        answers = self.engine.generate(
            prompts, max_tokens=settings["max_tokens"], stop=settings["stop"]
        )
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)]) for answer in answers]


def test_mixed_windows_are_refused(
    config: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM chooses RoPE's factors once, for all lengths."""
    monkeypatch.setitem(sys.modules, "vllm", FakeVllm(tiny_model_folder, []))
    windows = {"original_window": 64, "target_window": 512}
    settings = {"method": "longrope", "short_factor": "original"}
    write_extension(tiny_model_folder, tmp_path, digest="0", **windows, **settings)
    with pytest.raises(PreflightError, match=r"evaluation\.backend: .* only beyond 64 tokens"):
        VllmEngine(tmp_path, config, 300)
    write_extension(tiny_model_folder, tmp_path, digest="0", **windows, method="longrope")
    VllmEngine(tmp_path, config, 300)


@pytest.mark.medium
def test_vllm_starts_once_and_before_batches_are_sized(
    evaluated_model: Any,
    config: Any,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Any] = []
    fake = FakeVllm(tiny_model_folder, events)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    # Three samples a task decide nothing.
    monkeypatch.setattr(vllm, "MARGIN", 100.0)
    real = model_module.load_for

    def load(*args: Any, **settings: Any) -> Any:
        events.append("load")
        return real(*args, **settings)

    monkeypatch.setattr(model_module, "load_for", load)
    model = evaluated_model(config.model_copy(update={"backend": "vllm"}))
    for name in ("result", "work"):
        (tmp_path / name).mkdir()
    evaluate(model, tmp_path / "result", tmp_path / "work", store=Store(tmp_path / "store"))
    (settings,) = (event for event in events if event != "load")
    assert events[0] == settings
    # The model for all tasks, and both models for their similarity.
    assert events[1:] == ["load"] * 3
    assert settings["max_model_len"] >= 512
    assert settings["dtype"] == "float32"


def test_what_is_not_compared_is_said(
    evaluated_model: Any,
    config: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = evaluated_model(config.model_copy(update={"backend": "vllm"}))
    assert parity_run(model) is not None
    assert not caplog.text
    tasks = [replace(task, source="lm-eval") for task in read_tasks(model.samples)]
    monkeypatch.setattr(plan, "read_tasks", lambda _: tasks)
    assert parity_run(model) is None
    assert "are not compared with those of transformers" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_way_out_is_named(
    evaluated_model: Any, config: Any, tmp_path: Path
) -> None:
    model = evaluated_model(config.model_copy(update={"backend": "vllm"}))
    for name in ("result", "work"):
        (tmp_path / name).mkdir()
    with pytest.raises(PreflightError, match=r"evaluation\.backend: vllm cannot be imported"):
        evaluate(model, tmp_path / "result", tmp_path / "work", store=Store(tmp_path / "store"))
