"""Local tasks against direct computation, and guarantees about their prompts."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longred.errors import MismatchError, NonFiniteLossError
from longred.evaluation.counting import encode
from longred.evaluation.lm import TransformersLM
from longred.evaluation.own_tasks import run_own_task
from longred.evaluation.results import first_number, score
from longred.evaluation.tasks import Task, read_tasks, write_lines
from longred.models.load import load_model
from longred.store.artifacts import sha256_file


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load_model(tiny_model_folder)


@pytest.fixture(scope="module")
def tasks(samples_folder: Path) -> dict[str, Task]:
    return {task.key: task for task in read_tasks(samples_folder)}


@pytest.mark.parametrize("name", ["cloze", "continuation", "brackets"])
def test_choices_equal_direct_likelihoods(
    model: Any, tiny_model_folder: Path, tokenizer: Any, tasks: dict[str, Task], name: str
) -> None:
    task = tasks[f"short-{name}"]
    answers = run_own_task(
        TransformersLM(model, tokenizer, max_tokens=512, batch_tokens=1500), task
    )
    precise = load_model(tiny_model_folder, dtype=torch.float64)
    for sample, answer in zip(task.read_samples(), answers, strict=True):
        wanted = []
        size = len(encode(tokenizer, sample["input"]))
        for choice in sample["choices"]:
            tokens = encode(tokenizer, sample["input"] + choice)
            with torch.no_grad():
                logits = precise(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
            wanted.append(sum(float(logits[i - 1][tokens[i]]) for i in range(size, len(tokens))))
        assert answer["loglikelihoods"] == pytest.approx(wanted, abs=1e-3)
        assert answer["got"] == sample["choices"][wanted.index(max(wanted))]
        right = wanted.index(max(wanted)) == sample["answer"]
        assert answer["score"] == (100.0 if right else 0.0)


def test_generation_equals_greedy_search_without_padding(
    model: Any, tokenizer: Any, tasks: dict[str, Task]
) -> None:
    task = tasks["short-key_recall"]
    answers = run_own_task(
        TransformersLM(model, tokenizer, max_tokens=512, batch_tokens=2000), task
    )
    samples = task.read_samples()
    assert len({len(encode(tokenizer, sample["input"])) for sample in samples}) > 1
    for sample, answer in zip(samples, answers, strict=True):
        tokens = encode(tokenizer, sample["input"])
        start = len(tokens)
        for _ in range(sample["max_new_tokens"]):
            with torch.no_grad():
                token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            tokens.append(token)
            if token == tokenizer.eos_token_id or "\n" in tokenizer.decode(tokens[start:]):
                break
        text = tokenizer.decode(tokens[start:], skip_special_tokens=True)
        assert answer["got"] == text.split("\n")[0]


def test_prompts_begin_with_one_bos(model: Any, tokenizer: Any) -> None:
    lm = TransformersLM(model, tokenizer, max_tokens=512)
    bos = tokenizer.bos_token_id
    assert lm.tok_encode("a b c").count(bos) == 1
    assert lm.tok_encode("a b c") == encode(tokenizer, "a b c")
    assert lm.tok_encode(f"{tokenizer.bos_token}a")[1] != bos
    assert lm.tok_encode("a", add_special_tokens=False) == encode(tokenizer, "a")[1:]


class Recorded:
    """An engine that gives one answer to all prompts, and records them."""

    def __init__(self, answer: list[int]) -> None:
        self.answer, self.prompts = answer, []

    def generate(self, prompts: Any, **_: Any) -> list[list[int]]:
        self.prompts += [prompt.tolist() for prompt in prompts]
        return [self.answer for _ in prompts]


def test_long_prompts_are_asked_whole_or_refused(
    model: Any, tokenizer: Any, tasks: dict[str, Task]
) -> None:
    task = tasks["ruler-niah_single_1-512"]
    assert model.config.max_position_embeddings < task.max_tokens
    engine = Recorded([tokenizer.eos_token_id])
    lm = TransformersLM(model, tokenizer, max_tokens=64, engine=engine)
    run_own_task(lm, task)
    assert engine.prompts == [encode(tokenizer, prompt) for prompt in lm.endings]
    assert {each["ended"] for each in lm.endings.values()} == {"eos"}
    with pytest.raises(MismatchError, match=r"sample .* tokens"):
        run_own_task(lm, replace(task, max_tokens=task.max_tokens - 1))


def test_an_engine_may_answer_with_nothing(
    model: Any, tokenizer: Any, tasks: dict[str, Task]
) -> None:
    task = tasks["ruler-niah_single_1-512"]
    lm = TransformersLM(model, tokenizer, max_tokens=task.max_tokens, engine=Recorded([]))
    answers = run_own_task(lm, task)
    assert {(a["got"], a["ended"], a["output_tokens"]) for a in answers} == {("", "eos", 0)}


def test_model_that_knows_scores_everything(
    model: Any, tokenizer: Any, tasks: dict[str, Task], tmp_path: Path
) -> None:
    """A task whose references are the model's own answers scores 100."""
    task = tasks["short-key_recall"]
    lm = TransformersLM(model, tokenizer, max_tokens=512, batch_tokens=1000)
    said = [answer["got"] for answer in run_own_task(lm, task)]
    path = tmp_path / "samples.jsonl"
    samples = task.read_samples()
    write_lines(path, [{**s, "outputs": [t]} for s, t in zip(samples, said, strict=True)])
    known = replace(task, path=path, sha256=sha256_file(path), metric="recall")
    assert [answer["score"] for answer in run_own_task(lm, known)] == [100.0] * len(samples)


def test_scores_of_single_samples() -> None:
    sample = {"outputs": ["1234"], "answer": 1}
    for metric, results, expected in (
        ("exact_match", [" 1234. And"], (100.0, True)),
        ("exact_match", [" 12345"], (0.0, True)),
        ("exact_match", ["none"], (0.0, False)),
        ("recall", ["x 12345"], (100.0, True)),
        ("recall", ["x"], (0.0, True)),
        ("any_match", [" \n"], (0.0, False)),
        ("choice", [(-2.0, False), (-1.0, False)], (100.0, True)),
        ("choice", [(-1.0, True), (-1.0, True)], (0.0, True)),
        ("contains", ["It is 1234."], (100.0, True)),
    ):
        assert score(metric, sample, results) == expected, (metric, results)
    assert first_number("none") is None


def test_likelihoods_hold_no_logits_of_whole_prompts(
    model: Any, tokenizer: Any, tasks: dict[str, Task]
) -> None:
    """Only the tokens of the continuation have logits."""
    task = tasks["short-continuation"]
    lm = TransformersLM(model, tokenizer, max_tokens=512, batch_tokens=2000)
    sizes: list[int] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    run_own_task(lm, task)
    hook.remove()
    samples = task.read_samples()
    scored = [
        len(encode(tokenizer, s["input"] + c)) - len(encode(tokenizer, s["input"]))
        for s in samples
        for c in s["choices"]
    ]
    assert sum(sizes) == sum(scored)


def test_nan_is_one_error(tiny_model_folder: Path, tokenizer: Any, tasks: dict[str, Task]) -> None:
    broken = load_model(tiny_model_folder)
    with torch.no_grad():
        broken.lm_head.weight[:, 0] = float("nan")
    lm = TransformersLM(broken, tokenizer, max_tokens=512, batch_tokens=1000)
    for key in ("short-cloze", "short-key_recall"):
        with pytest.raises(NonFiniteLossError, match=r"not finite; .* evaluation\.dtype"):
            run_own_task(lm, tasks[key])


def test_tokenizer_without_bos_or_eos_is_asked(
    model: Any, tokenizer: Any, tasks: dict[str, Task]
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = bare.pad_token = None
    assert (bare.bos_token_id, bare.eos_token_id, bare.pad_token_id) == (None, None, None)
    lm = TransformersLM(model, bare, max_tokens=512, batch_tokens=1000)
    for key in ("short-cloze", "short-key_recall"):
        assert len(run_own_task(lm, tasks[key])) == 4
    assert lm.tok_encode("a") == encode(bare, "a")
