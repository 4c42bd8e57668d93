"""Every row of the table of faults names existing tests."""

import ast
import re
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", TABLE, re.MULTILINE)


def test_the_rows_are_numbered_without_a_gap() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 31))


@pytest.mark.parametrize("tests", [tests for _, tests in ROWS], ids=[row for row, _ in ROWS])
def test_every_test_of_a_row_exists(tests: str) -> None:
    nodes = re.findall(r"`([\w/.]+)::(\w+)(?:\[([^]]+)\])?`", tests)
    assert len(nodes) == tests.count("`") / 2 > 0
    for file, name, parameter in nodes:
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        functions = {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)}
        assert name in functions
        assert not parameter or f'"{parameter}"' in text
