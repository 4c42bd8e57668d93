"""A benchmark of one's own on a multiple-choice task of lm-eval: what is wrong is said at once."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from longred.errors import ConfigError, MismatchError
from longred.evaluation import lm_eval_errors
from longred.evaluation.lm_eval_catalog import leaf_settings
from longred.evaluation.lm_eval_tasks import freeze_leaf
from longred.evaluation.suites import SuiteTask, check_data_files
from longred.evaluation.tasks import Task

Row = dict[str, Any]
Freeze = Callable[..., list[Row]]

CHOICES = ["red", "green", "blue", "7"]
WORDING = {
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "should_decontaminate": False,
}


def rows_with(answers: Sequence[Any], **changes: Any) -> list[Row]:
    return [{"prompt": "Colour:", "choices": CHOICES, "answer": a, **changes} for a in answers]


def own_task(path: str, **changes: Any) -> SuiteTask:
    values = {
        "name": "own30",
        "capacity": "coding",
        "source": "lm-eval",
        "task": "arc_easy",
        "metric": "acc",
        "num_fewshot": 0,
        "chance": 25.0,
        "data_files": {"test": path},
        "overrides": WORDING,
    }
    return SuiteTask.model_validate({**values, **changes})


@pytest.fixture
def freeze_rows(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Freeze:
    """Write rows to `own30.jsonl` in the working directory, and freeze a task on them."""
    monkeypatch.chdir(tmp_path)

    def freeze(rows: Sequence[Row], **changes: Any) -> list[Row]:
        Path("own30.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entry = own_task("own30.jsonl", **changes)
        (settings,) = leaf_settings(entry, limit=None, allow_code=False).values()
        return freeze_leaf(settings, tokenizer)[0]

    return freeze


NUMBERS = r"\(0 to 3\)"
WRONG: dict[str, tuple[list[Row], str]] = {
    "too large": (
        rows_with([0, 1, 2, 3, 9]),
        rf":5: answer 9 is no index of its 4 choices {NUMBERS}",
    ),
    "first too large": (rows_with([4, 1]), rf":1: answer 4 is no index of its 4 choices {NUMBERS}"),
    "negative": (
        rows_with([0, -1]),
        ":2: the answer '-1' is neither the text of one of its 4 choic",
    ),
    "letter": (
        rows_with([0, "A"]),
        ":2: the answer 'A' is neither the text .* a number from 0 to 3",
    ),
    "letters": (
        rows_with(list("ABCD")),
        r":1: the answer 'A' is neither .* \(and 3 more like it\)",
    ),
    "none": (rows_with([0, None]), ":2: the answer 'None' is neither"),
    "fraction": (rows_with([0.5, 1.0]), ":1: the answer '0.5' is neither"),
    "one of several": (rows_with([[0, 1], [2, 4]]), r":2: the answers \[2, 4\] are no indices"),
    "no right one": (rows_with([[0, 1], []]), r":2: the answers \[\] are no indices"),
    "texts of several": (rows_with([["red"], ["blue"]]), r":1: the answers \[red\] are no indices"),
    "a list among numbers": (
        rows_with(["0", "[0, 1]"]),
        ":2: the answer .* is a list, that of the",
    ),
    "choices in a text": (rows_with([0], choices="'red'"), ":1: its choices are no list of texts"),
    "numbers to choose": (rows_with([0], choices=[1, 2]), ":1: its choices are no list of texts"),
    "an empty choice": (rows_with([0], choices=["a", ""]), ":1: one of its choices is empty"),
    "no choices": (rows_with([0]) + rows_with([0], choices=[]), ":2: it has no choices"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_answer_that_cannot_be_right_is_refused(case: str, freeze_rows: Freeze) -> None:
    rows, message = WRONG[case]
    with pytest.raises(ConfigError, match=rf"^own30\.jsonl{message}") as caught:
        freeze_rows(rows)
    assert str(caught.value).endswith("see doc_to_target and doc_to_choice of own30 in the suite")


def test_an_answer_read_from_a_column_must_be_a_number(freeze_rows: Freeze) -> None:
    """lm-eval converts digits that a template gives, but not those of a column."""
    by_column = {**WORDING, "doc_to_target": "answer"}
    with pytest.raises(ConfigError, match=r"own30\.jsonl:1: the answer '1' is neither"):
        freeze_rows(rows_with(["1"]), overrides=by_column)
    with pytest.raises(ConfigError, match=r"own30\.jsonl:2: answer -1 is no index of its 4"):
        freeze_rows(rows_with([0, -1]), overrides=by_column)
    with pytest.raises(ConfigError, match=r"own30\.jsonl:2: answer null is no index of its 4"):
        freeze_rows(rows_with([0, None, 1]), overrides=by_column)


@pytest.mark.parametrize(
    ("answers", "target"),
    [
        ([0, 1, 2, 3], "{{answer}}"),
        (["0", "3"], "{{answer}}"),
        (["red", "blue"], "{{answer}}"),
        (["red", "blue"], "answer"),
        ([0, 3], "answer"),
        ([0.0, 3.0], "answer"),
        ([False, True], "answer"),
        ([[0, 1], [3]], "{{answer}}"),
        ([[0, 1], [3]], "answer"),
        (["A", "D"], "{{'ABCD'.index(answer)}}"),
    ],
)
def test_every_form_that_lm_eval_reads_is_taken(
    answers: list[Any], target: str, freeze_rows: Freeze
) -> None:
    found = freeze_rows(rows_with(answers), overrides={**WORDING, "doc_to_target": target})
    assert len(found) == len(answers)


def test_choices_may_be_named_in_the_suite(freeze_rows: Freeze) -> None:
    fixed = {**WORDING, "doc_to_choice": ["no", "yes"]}
    assert len(freeze_rows(rows_with([0, 1, "no"]), overrides=fixed)) == 3
    letters = {**WORDING, "doc_to_choice": {"A": "no", "B": "yes"}}
    assert len(freeze_rows(rows_with([0, 1]), overrides=letters)) == 2
    with pytest.raises(ConfigError, match="answer 2 is no index of its 2 choices"):
        freeze_rows(rows_with([0, 2]), overrides=letters)


def test_one_prompt_per_choice_has_its_answer_in_the_text(freeze_rows: Freeze) -> None:
    """As winogrande: `doc_to_text` gives the index, `doc_to_choice` the prompts."""
    row = {"sentence": "A cup is in the _ again.", "option1": "bag", "option2": "box"}
    rows = [{**row, "answer": answer} for answer in ("1", "2")]
    changes = {"task": "winogrande", "data_files": {"validation": "own30.jsonl"}}
    assert len(freeze_rows(rows, overrides={}, **changes)) == 2
    wrong = {"doc_to_text": "{{answer}}"}
    with pytest.raises(ConfigError, match=r":2: answer 2 is no index .* see doc_to_text and doc_"):
        freeze_rows(rows, overrides=wrong, **changes)


def test_rows_that_a_task_processes_are_documents(freeze_rows: Freeze) -> None:
    row = {"ctx_a": "She", "ctx_b": "sat", "activity_label": "Rest", "endings": ["down.", "up."]}
    rows = [{**row, "label": label} for label in ("0", "2")]
    changes = {"task": "hellaswag", "data_files": {"validation": "own30.jsonl"}, "overrides": {}}
    assert len(freeze_rows(rows[:1], **changes)) == 1
    with pytest.raises(
        ConfigError, match=r"^own30: document 2: answer 2 is no index of its 2 choi"
    ):
        freeze_rows(rows, **changes)


def test_wrong_answers_on_the_hub_count_as_wrong_unless_all_are(
    freeze_rows: Freeze, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check = lm_eval_errors.check_answers

    def on_the_hub(settings: Any, task: Any) -> None:
        check({**settings, "data_files": {}}, task)

    monkeypatch.setattr("longred.evaluation.lm_eval_tasks.check_answers", on_the_hub)
    assert len(freeze_rows(rows_with([0, 4]))) == 2
    assert "own30: document 2: answer 4 is no index of its 4 choices" in caplog.text
    assert "1 of 2 documents like this count as wrong" in caplog.text
    with pytest.raises(MismatchError, match=r"^own30: document 1: the answer .A. .* on the hub"):
        freeze_rows(rows_with(["A", "A"]))


def test_a_wrong_column_is_named_beside_those_of_the_file(freeze_rows: Freeze) -> None:
    build = "cannot be built"
    columns = r"own30\.jsonl has the columns prompt, choices, answer; set doc_to_text in"
    own = {key: value for key, value in WORDING.items() if key != "doc_to_text"}
    with pytest.raises(
        ConfigError,
        match=rf"^own30: lm-eval's doc_to_text of arc_easy {build}: 'question' .*; {columns}",
    ):
        freeze_rows(rows_with([0]), overrides=own)
    with pytest.raises(
        ConfigError, match=rf"^own30: doc_to_text of the suite cannot be built: 'x' .*; {columns}"
    ):
        freeze_rows(rows_with([0]), overrides={**WORDING, "doc_to_text": "{{x}}"})
    with pytest.raises(ConfigError, match=r"doc_to_choice of the suite cannot .* syntax"):
        freeze_rows(rows_with([0], choices="red, or"))
    changes = {"task": "winogrande", "data_files": {"validation": "own30.jsonl"}}
    with pytest.raises(ConfigError, match=rf"winogrande {build}: KeyError: 'answer'; own30"):
        freeze_rows([{"sentence": "A _"}], overrides={}, **changes)


def test_a_missing_file_is_a_mistake_in_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = (
        r"^own30: data_files\.test: data/own30\.jsonl does not exist \(relative paths start in "
        rf"the working directory, {tmp_path}\)$"
    )
    entry = own_task("data/own30.jsonl")
    with pytest.raises(ConfigError, match=message):
        leaf_settings(entry, limit=None, allow_code=False)
    with pytest.raises(ConfigError, match=message):
        check_data_files([entry])
    Path("data").mkdir()
    Path("data/own30.jsonl").write_text("{}\n")
    check_data_files([entry, own_task("data/{subset}.jsonl")])
    with pytest.raises(ConfigError, match=r"data_files\.test: \{subset\}\.jsonl does not exist"):
        check_data_files([own_task("{subset}.jsonl")])


def test_formats_that_lm_eval_cannot_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("question\tanswer\n")
    with pytest.raises(ConfigError, match=r"^own30: data_files must have one .*: \.arrow, \.csv, "):
        leaf_settings(own_task(str(path)), limit=None, allow_code=False)


QUICKLY = """
import sys
from longred.cli import app
from longred.errors import ConfigError
try:
    app(["evaluate", "demo", "--suite", sys.argv[1]], standalone_mode=False)
except ConfigError as error:
    print(error)
assert not {"torch", "transformers", "lm_eval"} & set(sys.modules)
"""


def test_a_mistake_in_a_suite_is_said_before_anything_slow_is_imported(tmp_path: Path) -> None:
    suite = tmp_path / "brackets.yaml"
    values = own_task("nowhere.jsonl").model_dump(exclude={"name", "capacity"})
    suite.write_text(json.dumps({"capacities": {"coding": {"own30": values}}}))
    for name, message in (
        (str(suite), "own30: data_files.test: nowhere.jsonl does not exist (relative paths start"),
        ("demmo", "evaluation.short.suite: demmo is unknown; did you mean demo?"),
    ):
        command = [sys.executable, "-c", QUICKLY, name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(message)


def test_the_name_of_a_task_changes_no_score(tmp_path: Path) -> None:
    path = tmp_path / "own30.jsonl"
    path.write_text("{}\n")

    def identity(name: str) -> Row:
        entry = own_task(str(path), name=name)
        (settings,) = leaf_settings(entry, limit=None, allow_code=False).values()
        assert settings["name"] == name
        values = {"kind": "short", "name": "same", "source": "lm-eval", "metric": "acc"}
        numbers = {"chance": 25.0, "num_samples": 1, "max_tokens": 9, "sha256": "0"}
        return Task(**values, **numbers, path=path, settings=settings).identity()

    assert identity("one") == identity("two")
