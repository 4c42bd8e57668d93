"""lm-eval's answers against direct computations, and what it must not do to a prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longred.artifacts import sha256_file
from longred.errors import MismatchError
from longred.evaluation.benchmarks import ask, examinee, first_number, score
from longred.evaluation.prompts import encode
from longred.evaluation.units import Unit, read_units, write_lines
from longred.models import load_model


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load_model(tiny_model_folder, attention="sdpa")


@pytest.fixture(scope="module")
def units(samples_folder: Path) -> dict[str, Unit]:
    return {unit.key: unit for unit in read_units(samples_folder)}


@pytest.mark.parametrize("task", ["cloze", "continuation", "brackets"])
def test_choices_equal_direct_likelihoods(
    model: Any, tiny_model_folder: Path, tokenizer: Any, units: dict[str, Unit], task: str
) -> None:
    unit = units[f"short-{task}"]
    answers = ask(examinee(model, tokenizer, max_tokens=512, batch_size=3), unit)
    precise = load_model(tiny_model_folder, dtype=torch.float64, attention="sdpa")
    for sample, answer in zip(unit.read_samples(), answers, strict=True):
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
    model: Any, tokenizer: Any, units: dict[str, Unit]
) -> None:
    unit = units["short-key_recall"]
    answers = ask(examinee(model, tokenizer, max_tokens=512, batch_size=4), unit)
    samples = unit.read_samples()
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
    lm = examinee(model, tokenizer, max_tokens=512, batch_size=2)
    bos = tokenizer.bos_token_id
    tokens, mask = lm.tok_batch_encode(["a b c d e f", "a"])
    assert [row.tolist().count(bos) for row in tokens] == [1, 1]
    assert tokens[1][mask[1] == 1].tolist() == encode(tokenizer, "a")
    assert mask[1].tolist() == sorted(mask[1].tolist())
    assert lm.tok_encode(f"{tokenizer.bos_token}a")[1] != bos
    assert lm.tok_encode("a", add_special_tokens=False) == encode(tokenizer, "a")[1:]


def test_long_prompts_are_asked_whole_or_refused(
    model: Any, tokenizer: Any, units: dict[str, Unit]
) -> None:
    unit = units["ruler-niah_single_1-512"]
    assert model.config.max_position_embeddings < unit.max_tokens
    ask(examinee(model, tokenizer, max_tokens=unit.max_tokens, batch_size=2), unit)
    with pytest.raises(MismatchError, match=r"sample .* tokens"):
        ask(examinee(model, tokenizer, max_tokens=unit.max_tokens - 1, batch_size=2), unit)


def test_model_that_knows_scores_everything(
    model: Any, tokenizer: Any, units: dict[str, Unit], tmp_path: Path
) -> None:
    """A unit whose references are what the model says scores 100."""
    unit = units["short-key_recall"]
    lm = examinee(model, tokenizer, max_tokens=512, batch_size=2)
    said = [answer["got"] for answer in ask(lm, unit)]
    path = tmp_path / "samples.jsonl"
    samples = unit.read_samples()
    write_lines(path, [{**s, "outputs": [t]} for s, t in zip(samples, said, strict=True)])
    known = replace(unit, path=path, sha256=sha256_file(path), metric="recall")
    assert [answer["score"] for answer in ask(lm, known)] == [100.0] * len(samples)


def test_scores_of_single_samples() -> None:
    sample = {"outputs": ["1234"], "answer": 1}
    assert score("exact_match", sample, [" 1234. And"]) == 100.0
    assert score("exact_match", sample, [" 12345"]) == 0.0
    assert score("exact_match", sample, [""]) == 0.0
    assert score("recall", sample, ["x 12345"]) == 100.0
    assert score("choice", sample, [(-2.0, False), (-1.0, False)]) == 100.0
    assert score("choice", sample, [(-1.0, True), (-1.0, True)]) == 0.0
    assert first_number("none") is None
