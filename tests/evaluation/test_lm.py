"""What `TransformersLM` makes of lm-eval's requests and settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from test_chat_evaluation import TEMPLATE
from test_lm_eval_tasks import gsm8k, settings, write_questions
from transformers import GenerationConfig

from longred.errors import ConfigError, MismatchError
from longred.evaluation import lm_eval_tasks
from longred.evaluation.generation import Sampling
from longred.evaluation.lm import TransformersLM, new_tokens, request_tokens, sampling_of
from longred.evaluation.suites import SuiteTask
from longred.evaluation.tasks import Task, write_lines
from longred.models.load import load_model, load_tokenizer
from longred.store.artifacts import sha256_file


@pytest.fixture(scope="module")
def lm(tiny_model_folder: Path, tokenizer: Any) -> Any:
    return TransformersLM(load_model(tiny_model_folder), tokenizer, max_tokens=64)


def likelihoods(lm: Any, *pairs: tuple[str, str]) -> Any:
    return lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])


@pytest.mark.parametrize("choice", ["", " word" * 100])
def test_choices_that_cannot_be_scored_are_named(lm: Any, choice: str) -> None:
    with pytest.raises(MismatchError, match=r"the choice '.*' after '.*Which\?' has \d+ tokens"):
        likelihoods(lm, ("Which?", " one"), (f"{'Long. ' * 50}Which?", choice))


def test_an_empty_prompt_is_what_precedes_a_text(lm: Any, tokenizer: Any) -> None:
    """Whatever is asked beside it."""
    backend = tokenizer.backend_tokenizer
    processor, backend.post_processor = backend.post_processor, None
    try:
        arguments = {"until": [], "max_gen_toks": 4, "do_sample": False}
        texts = [
            lm.generate_until([Instance("generate_until", {}, (prompt, arguments), 0)])
            for prompt in ("", "import json and more")
        ]
        together = lm.generate_until(
            [
                Instance("generate_until", {}, (prompt, arguments), 0)
                for prompt in ("", "import json and more")
            ]
        )
    finally:
        backend.post_processor = processor
    tokens = [tokenizer.bos_token_id]
    for _ in range(4):
        with torch.no_grad():
            tokens.append(int(lm.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert texts[0] == [tokenizer.decode(tokens[1:], skip_special_tokens=True)]
    assert together == [text for (text,) in texts]


@pytest.mark.parametrize(
    "name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"]
)
def test_every_name_of_the_budget_is_counted(lm: Any, name: str) -> None:
    arguments = ("import json", {"until": ["\n"], name: 700})
    assert new_tokens(arguments) == 700
    assert request_tokens(arguments, lm.tok_encode) == 700 + len(lm.tok_encode("import json"))


@pytest.mark.parametrize(
    "own", [{}, {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.05}]
)
@pytest.mark.parametrize(
    "values",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.5, "top_k": 0},
        {"do_sample": True, "temperature": 0.5, "top_p": 0.3, "repetition_penalty": 1.0},
        {"do_sample": False, "repetition_penalty": 1.2},
        {"do_sample": False},
    ],
)
def test_tokens_are_chosen_as_in_transformers(
    lm: Any, own: dict[str, float], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.model, "generation_config", GenerationConfig(**own))
    theirs, _ = lm.model._prepare_generation_config(None, **values)
    expected = Sampling(repetition_penalty=theirs.repetition_penalty or 1.0)
    if values["do_sample"]:
        chosen = {name: getattr(theirs, name) for name in ("temperature", "top_k", "top_p")}
        expected = expected._replace(**chosen)
    assert sampling_of(values, lm.model.generation_config) == expected


def test_settings_that_are_not_supported_are_refused(lm: Any) -> None:
    with pytest.raises(ConfigError, match=r"generation_kwargs\.num_beams: 4 is not supported"):
        sampling_of({"num_beams": 4}, lm.model.generation_config)


@pytest.fixture
def chat_model(tiny_model_folder: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return Path(folder)


def frozen(found: dict[str, Any], folder: Path, samples: Path) -> Task:
    rows, entry = lm_eval_tasks.freeze_leaf(found, load_tokenizer(folder))
    write_lines(samples, rows)
    return Task(
        kind="short",
        name=found["name"],
        source="lm-eval",
        metric=found["metric"],
        chance=0.0,
        num_samples=len(rows),
        max_tokens=entry["max_tokens"],
        path=samples,
        sha256=sha256_file(samples),
        settings=found,
    )


@pytest.mark.medium
def test_a_chat_template_truncates_nothing_within_the_window(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "test": str(write_questions(tmp_path / "test.jsonl", 3)),
        "train": str(write_questions(tmp_path / "train.jsonl", 8, first=100)),
    }
    found = settings(gsm8k(files))
    found["overrides"] = {
        **found["overrides"],
        "generation_kwargs": {"until": [], "do_sample": False, "max_new_tokens": 5},
    }
    task = frozen(found, chat_model, tmp_path / "samples.jsonl")
    tokenizer = load_tokenizer(chat_model)
    lm = TransformersLM(load_model(chat_model), tokenizer, max_tokens=1024, is_chat=True)
    asked: list[Any] = []
    real = lm.engine.generate

    def generate(prompts: Any, **values: Any) -> Any:
        asked.extend(prompts)
        return real(prompts, **values)

    monkeypatch.setattr(lm.engine, "generate", generate)
    result = lm_eval_tasks.run_lm_eval_task(lm, task)
    assert result.scores["truncated"] == 0
    assert all(prompt[0] == tokenizer.bos_token_id for prompt in asked)
    assert max(map(len, asked)) > task.max_tokens - 5


@pytest.mark.medium
def test_choices_are_scored_without_the_template(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    rows = [{"id": str(n), "question": f"Is {n} red?", "choices": choices} for n in range(3)]
    path.write_text("".join(json.dumps({**row, "answerKey": "A"}) + "\n" for row in rows))
    files = {"test": str(path), "train": str(path)}
    names = {"name": "arc_easy", "task": "arc_easy", "capacity": "reading", "metric": "acc"}
    entry = SuiteTask(source="lm-eval", data_files=files, **names)
    task = frozen(settings(entry), chat_model, tmp_path / "samples.jsonl")
    tokenizer, model = load_tokenizer(chat_model), load_model(chat_model)
    in_chat, plain = (
        lm_eval_tasks.run_lm_eval_task(
            TransformersLM(model, tokenizer, max_tokens=1024, is_chat=is_chat), task
        )
        for is_chat in (True, False)
    )
    assert in_chat.answers == plain.answers
    assert len(plain.answers) == 3


def test_a_penalty_for_repetition_reads_a_prompt_once(
    lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of all its tokens for every token of the answer took longer than the model."""
    calls: list[int] = []
    real = np.unique

    def unique(tokens: Any) -> Any:
        calls.append(len(tokens))
        return real(tokens)

    monkeypatch.setattr(np, "unique", unique)
    prompt = np.arange(300) % 50 + 4
    lm.engine.generate([prompt], max_tokens=6, stop=[], sampling=Sampling(repetition_penalty=1.3))
    assert calls == [300]
