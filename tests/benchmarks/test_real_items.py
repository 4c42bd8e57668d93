"""What a real model's items take, and how short sets of lm-eval are scored without lm-eval."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from real import estimates, short
from real.inputs import METHODS
from real.items import ORDER, fitting_steps, items, other_seconds, step_seconds
from transformers import LlamaConfig

from longred.cost.shape import ModelShape, shape_of
from longred.method.job import TrainingJob


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """What `Inputs` says of SmolLM2-135M with the defaults of `prepare`."""
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    shape: ModelShape = shape_of(config)
    rows = {"long": 4, "short": 96, "original": 4}
    folders = dict.fromkeys(("data_folder", "student_folder", "teacher_folder"), ".")
    jobs = {
        method: TrainingJob(
            **folders,
            method=method,
            data_digest="",
            rows={"long": 8} if method == "cpt" else rows,
            distill_layers=(1, 30),
            original_window=8192,
            target_window=32768,
            uncheckpointed_tokens=32768,
        )
        for method in METHODS
    }
    values = {
        "num_steps": 100,
        "lengths": [8192, 16384, 32768],
        "loss_tokens": 6 * 32768,
        "short_tokens": 1_000_000,
        "ruler": [
            "niah_single_1",
            "niah_single_2",
            "niah_single_3",
            "niah_multikey_1",
            "vt",
            "fwe",
        ],
        "first_samples": 6,
        "samples": 24,
    }
    lengths = {"long": 32768, "short": 1024, "original": 8192}
    return SimpleNamespace(
        folder=".", shape=shape, values=values, jobs=lambda: jobs, row_lengths=lengths
    )


def test_the_first_three_models_come_in_the_first_minutes(smollm2: Any) -> None:
    found = list(items(smollm2, [], deadline=540.0))
    names = [item.name for item in found]
    assert names[:5] == ["profile", "original", "rescaled", "train-longred-c", "longred-c"]
    assert sum(item.seconds for item in found[:5]) < 180
    assert sum(item.seconds for item in found if not item.name.startswith("more")) <= 540 - 12
    assert fitting_steps(smollm2, 540.0) >= 10
    # The first training takes more steps if it is faster than estimated.
    options = found[3].options
    assert options["num_steps"] == 100
    seconds = step_seconds(smollm2)["longred-c"] * fitting_steps(smollm2, 540.0)
    assert options["budget_seconds"] == pytest.approx(seconds)


def test_all_trainings_take_as_many_steps(smollm2: Any) -> None:
    steps = step_seconds(smollm2)
    results: list[dict[str, Any]] = []
    for item in items(smollm2, results, deadline=540.0):
        if item.name == "train-longred-c":
            # Twice as fast as estimated.
            measured = {"num_steps": 37, "seconds": steps["longred-c"] / 2}
            results.append({"item": f"{item.name}/steps", "status": "ok", "measured": measured})
        elif item.name == "train-cpt":
            assert item.options["num_steps"] == 37
            assert item.options["budget_seconds"] == 0
            expected = estimates.TRAINING_START + 37 * steps["cpt"] / 2
            assert item.seconds == pytest.approx(expected, abs=0.1)
    fixed = {item.name: item for item in items(smollm2, [], deadline=540.0, num_steps=7)}
    assert {fixed[f"train-{method}"].options["num_steps"] for method in METHODS} == {7}
    assert other_seconds(smollm2, ORDER[0]) == estimates.PROFILE


@pytest.mark.medium
def test_short_sets_score_as_in_lm_eval(tiny_model_folder: Path, tmp_path: Path) -> None:
    from longred.evaluation.lm import TransformersLM
    from longred.evaluation.lm_eval_catalog import leaf_settings
    from longred.evaluation.lm_eval_tasks import freeze_leaf, run_lm_eval_task
    from longred.evaluation.local_lm import LocalLM
    from longred.evaluation.suites import SuiteTask
    from longred.evaluation.tasks import Task, write_lines
    from longred.models.load import load_model, load_tokenizer
    from longred.store.artifacts import sha256_file

    words = ["red", "blue or green", "a colour that nobody has seen"]
    arc = [
        {
            "id": str(n),
            "question": f"Which is number {n}?",
            "choices": {"text": words[n % 3 :] + words[: n % 3], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n % 2],
        }
        for n in range(9)
    ]
    said = [{"text": f"def f{n}(x): return {n} "} for n in range(4)]
    wino = [
        {"sentence": f"{n} is _ than one.", "option1": "more", "option2": "less", "answer": "1"}
        for n in range(6)
    ]
    model, tokenizer = load_model(tiny_model_folder), load_tokenizer(tiny_model_folder)
    for name, metric, rows in (
        ("arc_easy", "acc", arc),
        ("arc_easy", "acc_norm", arc),
        ("lambada_openai", "acc", said),
        ("winogrande", "acc", wino),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = dict.fromkeys(("train", "validation", "test"), str(path))
        if name == "lambada_openai":
            files = {"test": str(path)}
        if name == "winogrande":
            files = {"train": str(path), "validation": str(path)}
        entry = SuiteTask(
            name=name, capacity="x", source="lm-eval", metric=metric, task=name, data_files=files
        )
        (settings,) = leaf_settings(entry, limit=None, allow_code=False).values()
        frozen, found = freeze_leaf(settings, tokenizer)
        write_lines(tmp_path / "samples.jsonl", frozen)
        task = Task(
            kind="short",
            name=name,
            source="lm-eval",
            metric=metric,
            chance=0.0,
            num_samples=len(frozen),
            max_tokens=found["max_tokens"],
            path=tmp_path / "samples.jsonl",
            sha256=sha256_file(tmp_path / "samples.jsonl"),
            settings=settings,
        )
        lm = TransformersLM(model, tokenizer, max_tokens=512)
        expected = run_lm_eval_task(lm, task).answers
        answers = short.score(LocalLM(model, tokenizer, max_tokens=512), short.freeze(settings))
        assert [a["score"] for a in answers] == [a["score"] for a in expected], name
        assert len(answers) == len(rows)
