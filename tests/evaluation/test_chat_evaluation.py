"""Evaluation through a chat template against greedy decoding of prompts written out by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from longred.config import EvaluationConfig
from longred.evaluation.evaluate import evaluate
from longred.evaluation.model import EvaluatedModel
from longred.evaluation.tasks import Task, read_lines, read_tasks
from longred.models.load import load_model
from longred.store.artifacts import Store

TEMPLATE = (
    "<|bos|>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_model_folder, copy)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return copy


@pytest.fixture(scope="module")
def answers(
    config: EvaluationConfig,
    folder: Path,
    samples_folder: Path,
    data_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return setting -> task -> answers; all settings share a store."""
    store, found = Store(tmp_path_factory.mktemp("store")), {}
    for setting in ("auto", "false"):
        place, work = tmp_path_factory.mktemp("scores"), tmp_path_factory.mktemp("work")
        evaluated = EvaluatedModel(
            config=config.model_copy(update={"chat_template": setting, "dtype": "float32"}),
            name="chat",
            model=folder,
            checkpoint="c0ffee",
            original=folder,
            original_digest="c0ffee",
            samples=samples_folder,
            data=data_folder,
        )
        evaluate(evaluated, place, work, store=store)
        found[setting] = {
            path.stem: read_lines(path) for path in (place / "samples").glob("*.jsonl")
        }
    return found


def greedy(model: Any, tokenizer: Any, prompt: str, sample: dict[str, Any]) -> str:
    """Return the first line of the answer; control tokens of the prompt are encoded as such."""
    encoded = tokenizer(prompt, add_special_tokens=False, split_special_tokens=False)
    tokens = list(encoded["input_ids"])
    start = len(tokens)
    for _ in range(sample["max_new_tokens"]):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == tokenizer.eos_token_id or "\n" in tokenizer.decode(tokens[start:]):
            break
    text: str = tokenizer.decode(tokens[start:], skip_special_tokens=True)
    return text.split("\n")[0]


def spelt_out(sample: dict[str, Any]) -> str:
    """Return one user turn and the prefix of the answer."""
    return f"<|bos|><user>{sample['input']}<|eos|><assistant>{sample.get('prefix', '')}"


@pytest.mark.medium
def test_questions_go_through_the_template(
    answers: dict[str, Any], folder: Path, samples_folder: Path, tokenizer: Any
) -> None:
    model = load_model(folder)
    generated: list[Task] = [t for t in read_tasks(samples_folder) if t.metric != "choice"]
    assert {task.kind for task in generated} == {"short", "ruler"}
    for task in generated:
        for sample, answer in zip(task.read_samples(), answers["auto"][task.table], strict=True):
            assert answer["got"] == greedy(model, tokenizer, spelt_out(sample), sample), task.key


def test_choices_and_base_models_do_not(answers: dict[str, Any]) -> None:
    chat, base = answers["auto"], answers["false"]
    assert set(chat) == set(base)
    for name in ("short-cloze", "short-continuation", "short-brackets"):
        assert chat[name] == base[name]
    names = [name for name in chat if name.startswith(("ruler", "short-key_recall"))]
    assert any(
        one["got"] != two["got"]
        for name in names
        for one, two in zip(chat[name], base[name], strict=True)
    )
