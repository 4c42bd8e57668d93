"""Wrong commands and recipes: each gets one message that a stranger can act on.

`cases.yaml` says what a good answer contains, `OUTPUTS.md` shows all answers. To write that page
anew: `RECORD_OUTPUTS=1 python -m pytest -n 0 tests/cli/wrong`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from wrong_commands import (
    CASES,
    EXIT_CODES,
    MAX_CHARACTERS,
    OUTPUTS,
    RECIPE,
    STATES,
    Case,
    Outcome,
    faults,
    markdown,
    recorded,
    run,
    section,
)

from longred.cli import VERBS
from longred.config import load_recipe

RECORDED = recorded()
RECORDS = bool(os.environ.get("RECORD_OUTPUTS"))
HEAVY = re.compile(
    r"--dry-run|^(plan|check|drift|evaluate|export|init|up|deploy|doctor)\b|^run demo$|--pilot \d"
)
"""Commands that import torch, Prefect or MLflow before they are refused: once for all, seconds."""


def _parameter(case: Case) -> object:
    marks = [pytest.mark.medium] if HEAVY.search(case.command) else []
    return pytest.param(case, id=case.id, marks=marks)


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """Outcomes of this session by case; written to the page on demand."""
    found: dict[str, Outcome] = {}
    yield found
    if RECORDS and len(found) == len(CASES):
        OUTPUTS.write_text(markdown(found), encoding="utf-8")


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_a_stranger_can_act_on_the_answer(
    case: Case, tmp_path: Path, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[case.id] = run(case, tmp_path)
    found = faults(case, outcome)
    assert not found, f"{'; '.join(found)}\n\n{section(case, outcome)}"
    if case.id in RECORDED and not case.varies and not RECORDS:
        assert section(case, outcome) == RECORDED[case.id], "differs from OUTPUTS.md; see there"


def test_recipe_that_cases_edit_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    assert load_recipe(path).name == "mine"


def test_list_is_large_complete_and_sound() -> None:
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids)) >= 200
    commands = [str((case.command, case.env, case.files, case.given)) for case in CASES]
    assert len(commands) == len(set(commands))
    used = {case.command.split()[0] for case in CASES}
    assert {verb.__name__ for group in VERBS.values() for verb in group} <= used
    assert {state for case in CASES for state in case.given} == set(STATES)
    for case in CASES:
        assert case.says
        assert set(case.exit_codes()) <= EXIT_CODES


def test_recorded_outputs_are_those_of_the_list() -> None:
    if RECORDS:
        pytest.skip("the page is being written")
    assert list(RECORDED) == [case.id for case in CASES]


def test_rules_find_bad_answers() -> None:
    case = Case("x", "run demo", exit_code=2, says=["training.num_steps", "/whole|integer/"])
    good = Outcome(2, "", "longred: training.num_steps: must be a whole number", [])
    assert not faults(case, good)
    for bad in (
        Outcome(0, "", good.stderr, []),
        Outcome(2, "", good.stderr, ["20260101-120000-demo"]),
        Outcome(2, "", f"{good.stderr}\n{good.stderr}", []),
        Outcome(2, "", f"{good.stderr} " + "x" * MAX_CHARACTERS, []),
        Outcome(2, "", f"Traceback (most recent call last):\n{good.stderr}", []),
        Outcome(2, "", "training.num_steps: Input should be an integer", []),
        Outcome(2, "", "training.num_steps: must be a number", []),
        Outcome(2, "", f"{good.stderr}, got \x1b[31m", []),
    ):
        assert faults(case, bad), bad
