"""Exact match and F1 of SQuAD against slow, obvious counts."""

import importlib
import itertools
import random
import sys
from typing import Any

import pytest

from longred.evaluation.metrics import local_metrics
from longred.evaluation.metrics.squad import (
    SquadV2,
    compute_exact,
    compute_f1,
    normalize_answer,
)

WORDS = ["the", "The", "a", "red", "Red!", "hat", "hat,", "x-ray", "1,000", "", "é", "an"]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 5))) for _ in range(count)]


def slow_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def slow_f1(wanted: str, got: str) -> float:
    first, second = slow_words(wanted), slow_words(got)
    if not first or not second:
        return float(first == second)
    left, shared = list(second), 0
    for word in first:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(first) + len(second))


def test_words_are_compared_as_squad_does() -> None:
    assert normalize_answer("The  X-Ray, an A.") == "xray"
    assert compute_exact("The red hat!", "red hat") == 1
    assert compute_exact("red hat", "hat red") == 0
    for wanted, got in itertools.product(texts(60, 1), texts(60, 2)):
        assert compute_f1(wanted, got) == pytest.approx(slow_f1(wanted, got), abs=1e-12)
        assert compute_exact(wanted, got) == int(slow_words(wanted) == slow_words(got))


def slow_best(rows: list[dict[str, Any]], metric: Any) -> float:
    """Try every threshold: a question above it counts as not answered."""

    def value(row: dict[str, Any], threshold: float) -> float:
        answers = [text for text in row["answers"] if slow_words(text)]
        said = row["text"] if row["probability"] <= threshold else None
        if not answers:
            return float(not said)
        return 0.0 if said is None else max(metric(answer, said) for answer in answers)

    thresholds = [-1.0, *(row["probability"] for row in rows)]
    return max(100 * sum(value(row, t) for row in rows) / len(rows) for t in thresholds)


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_means_over_kinds_of_questions(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        {
            "answers": texts(draw.randint(0, 2), 100 * seed + n),
            "text": draw.choice([*texts(2, n), "red hat"]),
            "probability": draw.random(),
        }
        for n in range(20)
    ]
    predictions = [
        {"id": str(n), "prediction_text": r["text"], "no_answer_probability": r["probability"]}
        for n, r in enumerate(rows)
    ]
    references = [{"id": str(n), "answers": {"text": r["answers"]}} for n, r in enumerate(rows)]
    found = SquadV2().compute(predictions=predictions, references=references)
    for name, metric in (("exact", compute_exact), ("f1", slow_f1)):
        values: dict[str, list[float]] = {"": [], "HasAns_": [], "NoAns_": []}
        for row in rows:
            answers = [text for text in row["answers"] if slow_words(text)]
            value = max(metric(answer, row["text"]) for answer in answers or [""])
            for kind in ("", "HasAns_" if answers else "NoAns_"):
                values[kind].append(value)
        for kind, each in values.items():
            assert found[f"{kind}{name}"] == pytest.approx(100 * sum(each) / len(each))
            assert found[f"{kind}total"] == len(each)
        assert found[f"best_{name}"] == pytest.approx(slow_best(rows, metric))


def test_tasks_find_the_metrics_only_while_they_are_loaded() -> None:
    import evaluate

    load, name = evaluate.load, "transformers.data.metrics.squad_metrics"
    with local_metrics():
        module = importlib.import_module(name)
        assert module.compute_f1("red hat", "hat") == pytest.approx(2 / 3)
        assert evaluate.load("squad_v2").compute is not None
    assert evaluate.load is load
    assert name not in sys.modules
