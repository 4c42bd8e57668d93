"""Suites are data: every task named in one has a generator and a possible chance."""

import pytest

from longred.errors import ConfigError
from longred.evaluation import short
from longred.evaluation.suites import FOLDER, load_suite


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.yaml")])
def test_packaged_suites_are_whole(name: str) -> None:
    tasks = load_suite(name)
    assert {task.name for task in tasks} <= set(short.TASKS)
    for task in tasks:
        assert task.metric in ("choice", "exact_match")
        assert 0 <= task.chance < 100
        # These stand beside tasks and capacities in metric keys and score tables.
        assert task.capacity not in ("short", "ruler")
        assert task.name != "average"


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.short\.suite: none .* demo"):
        load_suite("none")
