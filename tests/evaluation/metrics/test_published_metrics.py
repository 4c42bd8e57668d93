"""Metrics of published benchmarks against hand-computed values and slow references."""

import itertools
import math
import random

import pytest

from longred.evaluation.metrics import published as metrics
from longred.evaluation.metrics.published import Score


@pytest.mark.parametrize(
    ("answer", "outputs", "expected"),
    [
        ("Answer: Paris, France.", ["the Paris"], Score(100.0, True)),
        ("Answer: London", ["Paris", "LONDON!"], Score(100.0, True)),
        ("Answer:", ["Paris"], Score(0.0, False)),
        (" \n", ["Paris"], Score(0.0, False)),
        ("I do not know.\nAnswer: Rome", ["Paris"], Score(0.0, True)),
        ("par is", ["Paris"], Score(0.0, True)),
    ],
)
def test_substring(answer: str, outputs: list[str], expected: Score) -> None:
    assert metrics.helmet_substring(answer, {"outputs": outputs}) == expected


def test_the_first_line_behind_the_opening_is_the_label() -> None:
    sample = {"outputs": ["12"]}
    for answer, expected in (
        ("label: 12\nnext text\nlabel: 3", (100.0, True)),
        ("label: label: 12", (100.0, True)),
        ("Label: 12.", (100.0, True)),
        ("12", (100.0, True)),
        ("label: 112", (0.0, True)),
        ("label: twelve", (0.0, False)),
        ("label:\n12", (0.0, False)),
    ):
        assert metrics.helmet_label(answer, sample) == expected, answer


def test_recall_is_the_share_of_references() -> None:
    sample = {"outputs": ["12", "Ab"], "suffix": "\nThe numbers are"}
    assert metrics.helmet_recall("The numbers are 12 and aB", sample) == (100.0, True)
    assert metrics.helmet_recall("The numbers are 112", sample) == (50.0, True)
    assert metrics.helmet_recall("The numbers are ", sample) == (0.0, False)


def test_rankings() -> None:
    sample = {"relevances": {"10": 3, "20": 0, "30": 1}}
    best = 3 / math.log2(2) + 1 / math.log2(3)
    for answer, gain, is_parsed in (
        ("Ranking: ID10 > ID30 > ID20", best, True),
        ("Ranking: [ID: 30] > [ID: 10]", 1 / math.log2(2) + 3 / math.log2(3), True),
        ("Ranking: 20 > 20 > 20 > 10", 3 / math.log2(3), True),
        ("In 1998 there were 30 of them", 0.0, False),
        ("Document (Title: x): text", 0.0, False),
        ("7 > 8 > 9 > 30, or 10", 1 / math.log2(5), True),
    ):
        found = metrics.helmet_ranking(answer, sample)
        assert found.percent == pytest.approx(100 * gain / best), answer
        assert found.is_parsed is is_parsed, answer


def test_ndcg_is_one_for_the_best_order_only() -> None:
    rng = random.Random(5)
    for _ in range(50):
        relevances = {str(n): rng.randrange(4) for n in range(5)}
        values = {
            order: sum(
                relevances[item] / math.log(place + 2, 2) for place, item in enumerate(order[:3])
            )
            for order in itertools.permutations(relevances)
        }
        best = max(values.values())
        for order, value in values.items():
            expected = value / best if best else 0.0
            assert metrics.ndcg(order, relevances, 3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "nodes", "expected"),
    [
        ("Final Answer: [a, b]", ["b", "a"], Score(100.0, True)),
        ("thinking [x]\nFinal Answer: [a, c, 'd']\n", ["a", "b"], Score(40.0, True)),
        ("Final Answer: []", [], Score(100.0, True)),
        ("Final Answer: []", ["a"], Score(0.0, True)),
        ("Final Answer: [a]", [], Score(0.0, True)),
        ("Final Answer: [a]\nI hope this helps.", ["a"], Score(0.0, False)),
        ("a, b", ["a", "b"], Score(0.0, False)),
        ("", [], Score(0.0, False)),
    ],
)
def test_sets_of_nodes(answer: str, nodes: list[str], expected: Score) -> None:
    found = metrics.graphwalks(answer, {"outputs": nodes})
    assert found.is_parsed is expected.is_parsed
    assert found.percent == pytest.approx(expected.percent)


def test_mrcr_compares_texts_behind_the_prefix() -> None:
    sample = {"outputs": ["Xy12abcd"], "random_prefix": "Xy12"}
    assert metrics.mrcr("Xy12abcd", sample) == (100.0, True)
    # abcd and abxd share ab and d: 2 * 3 / (4 + 4).
    assert metrics.mrcr(" Xy12abxd", sample) == (75.0, True)
    assert metrics.mrcr("abcd", sample) == (0.0, False)
    assert metrics.mrcr("Xy12", sample) == (0.0, True)


def test_contains_depends_on_case() -> None:
    assert metrics.contains("It is Yuki.", {"outputs": ["Yuki"]}) == (100.0, True)
    assert metrics.contains("yuki", {"outputs": ["Yuki"]}) == (0.0, True)
    assert metrics.contains("\n", {"outputs": ["Yuki"]}) == (0.0, False)
    opened = {"outputs": ["Yuki"], "suffix": "\nAnswer:"}
    assert metrics.contains("Answer: Yuki", opened) == (100.0, True)
    assert metrics.contains("Answer: ", opened) == (0.0, False)


@pytest.mark.parametrize(
    ("measure", "answer", "outputs", "expected"),
    [
        ("accuracy", "so\n[Answer]\n B ", ["b"], 100.0),
        ("accuracy", "[Answer]\nA\nB", ["b"], 0.0),
        ("f1", "[Answer] x [Answer]\na\nb  c\nd", ["A", "b c"], 80.0),
        ("recall", "[答案]\na\nz", ["a", "b", "c"], 100 / 3),
        ("pairs", "a\nb\nc", ["a", "c", "b"], 200 / 3),
        ("pairs", "a", ["a", "b"], 0.0),
        ("ndcg", "b\na", ["a", "b"], 100 * (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
        ("ndcg", "a\nb\na", ["a", "b"], 100 * (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
    ],
)
def test_measures_of_longbench_pro(
    measure: str, answer: str, outputs: list[str], expected: float
) -> None:
    found = metrics.longbench_pro(answer, {"measure": measure, "outputs": outputs})
    assert found == (pytest.approx(expected), True)


def test_nothing_behind_the_mark_is_not_parsed() -> None:
    for answer in ("", "text [Answer]\n "):
        assert metrics.longbench_pro(answer, {"measure": "f1", "outputs": ["a"]}) == (0.0, False)
