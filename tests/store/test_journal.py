"""The journal: whole lines only, truncated on resume, readable while it is written."""

import json
from pathlib import Path

import pytest

from longred.store.journal import Journal, read_lines


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "metrics.jsonl")
    journal.append({"train/loss": 2.5, "train/grad_norm": 1}, step=1)
    journal.append({"train/loss": 2.25}, step=2)
    journal.flush()
    lines = Journal(journal.path).read()
    assert [(x["key"], x["value"], x["step"]) for x in lines] == [
        ("train/loss", 2.5, 1),
        ("train/grad_norm", 1.0, 1),
        ("train/loss", 2.25, 2),
    ]
    assert all(x["time"] > 1e9 for x in lines)


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    assert journal.read() == []
    journal.truncate_after(3)
    journal.flush()
    journal.close()
    assert not journal.path.exists()


@pytest.mark.parametrize("torn", ['{"key": "a", "val', "x" * 10000])
def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    journal.append({"a": 1.0}, step=1)
    journal.close()
    with path.open("a") as file:
        file.write(torn)
    again = Journal(path)
    assert [x["step"] for x in again.read()] == [1]
    again.append({"a": 2.0}, step=2)
    assert [x["step"] for x in again.read()] == [1, 2]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_truncation_keeps_earlier_steps_and_appending_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        journal.append({"a": step}, step=step)
    journal.truncate_after(3)
    journal.append({"a": 40}, step=4)
    assert [(x["step"], x["value"]) for x in journal.read()] == [(1, 1), (2, 2), (3, 3), (4, 40)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="train/loss"):
        Journal(tmp_path / "metrics.jsonl").append({"train/loss": value}, step=3)


def test_reading_goes_on_from_an_offset_and_starts_over_after_a_truncation(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"a": 1, "b": 1}, step=1)
    lines, offset = read_lines(journal.path, 0)
    assert len(lines) == 2
    journal.append({"a": 2}, step=2)
    lines, offset = read_lines(journal.path, offset)
    assert [x["value"] for x in lines] == [2]
    journal.truncate_after(1)
    lines, _ = read_lines(journal.path, offset)
    assert [x["key"] for x in lines] == ["a", "b"]
