"""The score is RULER's published one, on cases worked out by hand."""

from collections.abc import Sequence

import pytest
from oracles import V1_TASKS

from longred.errors import ConfigError
from longred.evaluation import results, ruler
from longred.evaluation.metrics.ruler import any_match, recall

# prediction, references, recall, any match
CASES = [
    (" 1234567.", ["1234567"], 100.0, 100.0),
    ("123456", ["1234567"], 0.0, 0.0),
    ("", ["1234567"], 0.0, 0.0),
    ("12345678", ["1234567"], 100.0, 100.0),  # a substring is enough
    ("1111111, 2222222, and 4444444", ["1111111", "2222222", "3333333", "4444444"], 75.0, 100.0),
    ("1. apple 2. PEAR 3. plum", ["Apple", "pear", "cherry"], 200 / 3, 100.0),
    ("ABCDE FGHIJ", ["ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY"], 40.0, 100.0),
    ("abcde", ["ABCDE"], 100.0, 100.0),  # case does not matter
    ("France", ["France", "Normandy, France", "northern France"], 100 / 3, 100.0),
    (
        "in northern france, I think",
        ["France", "Normandy, France", "northern France"],
        200 / 3,
        100.0,
    ),
    ("Germany", ["France", "Normandy, France"], 0.0, 0.0),
    ("yes, it is", ["yes"], 100.0, 100.0),
    ("new\tyork", ["new york"], 0.0, 0.0),  # control characters become line ends
    ("new\nyork", ["new\nyork"], 100.0, 100.0),
    ("\x00\x01 42 \x1f", ["42"], 100.0, 100.0),
]


@pytest.mark.parametrize(("prediction", "references", "all_of", "any_of"), CASES)
def test_scores_of_one_answer(
    prediction: str, references: Sequence[str], all_of: float, any_of: float
) -> None:
    assert recall(prediction, references) == pytest.approx(all_of)
    assert any_match(prediction, references) == any_of
    sample = {"outputs": list(references)}
    assert results.score("recall", sample, [prediction]).percent == pytest.approx(all_of)
    assert results.score("any_match", sample, [prediction]).percent == any_of


@pytest.mark.parametrize("task", V1_TASKS)
def test_a_task_has_the_mean_of_its_metric(task: str) -> None:
    predictions = ["France", "1 and 2", "none"]
    references = [["France", "northern France"], ["1", "2", "3", "4"], ["x"]]
    expected = 200 / 3 if task in ("qa_1", "qa_2") else 100 / 3
    assert ruler.score(task, predictions, references) == pytest.approx(expected)


def test_uneven_and_empty_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        ruler.score("vt", ["1"], [["1"], ["2"]])
    with pytest.raises(ValueError, match="at least one"):
        ruler.score("vt", [], [])
    with pytest.raises(ConfigError, match="unknown"):
        ruler.score("vtt", ["1"], [["1"]])
