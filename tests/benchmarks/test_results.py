"""Test the files of GPU-check results, and that no later file is worse than an earlier one."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from gpu.lines import Results, by_device, compare, finished, new_path, read_lines, stem_of, table

RESULTS = Path(__file__).parent / "results"


def line(item: str, layers: int = 32, **measured: float) -> dict[str, Any]:
    return {
        "item": item,
        "status": "ok",
        "settings": {"layers": layers},
        "measured": measured,
        "planned": {},
        "ratio": {},
    }


def problems(folder: Path) -> list[str]:
    """Return the figures that are worse in a results file than in its predecessor."""
    return [
        f"{later.name}: {difference}"
        for paths in by_device(folder).values()
        for earlier, later in itertools.pairwise(paths)
        for difference in compare(read_lines(earlier), read_lines(later))
        if difference.is_worse
    ]


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def test_no_committed_result_is_worse_than_the_one_before_it() -> None:
    for paths in by_device(RESULTS).values():
        for path in paths:
            assert finished(read_lines(path)), f"{path.name}: no item in it was finished"
    assert problems(RESULTS) == []


def test_a_worse_file_in_the_folder_is_found(tmp_path: Path) -> None:
    write(tmp_path / "gpu-a-8b-32k.jsonl", line("buckets/long", seconds=5.0))
    write(tmp_path / "gpu-a-8b-32k-2026-12-01.jsonl", line("buckets/long", seconds=4.0))
    write(tmp_path / "gpu-b-8b-32k.jsonl", line("buckets/long", seconds=1.0))
    assert problems(tmp_path) == []
    write(tmp_path / "gpu-a-8b-32k-2026-12-02.jsonl", line("buckets/long", seconds=4.7))
    assert problems(tmp_path) == [
        "gpu-a-8b-32k-2026-12-02.jsonl: buckets/long seconds: 4 -> 4.7 (+17.5%, worse)"
    ]


def test_what_was_timed_once_is_not_compared() -> None:
    slow = {**line("a", seconds=9.0), "timed_once": True}
    assert compare([line("a", seconds=1.0)], [slow]) == []


@pytest.mark.parametrize(
    ("key", "later", "is_worse"),
    [
        ("seconds", 1.14, None),
        ("seconds", 1.16, True),
        ("seconds", 0.88, None),
        ("seconds", 0.86, False),
        ("tokens_per_second", 0.88, None),
        ("tokens_per_second", 0.86, True),
        ("flops_per_second", 1.16, False),
        ("peak_bytes", 1.019, None),
        ("peak_bytes", 1.021, True),
        ("peak_bytes", 0.97, False),
        ("first_seconds", 9.0, None),
        ("grad_norm", 9.0, None),
    ],
)
def test_speed_may_differ_by_15_percent_and_memory_by_2(
    key: str, later: float, is_worse: bool | None
) -> None:
    found = compare([line("a", **{key: 1.0})], [line("a", **{key: later})])
    assert [difference.is_worse for difference in found] == ([] if is_worse is None else [is_worse])


def test_only_successful_lines_of_equal_settings_are_compared() -> None:
    slow = line("a", seconds=9.0)
    assert len(compare([line("a", seconds=1.0)], [slow])) == 1
    assert compare([line("a", layers=16, seconds=1.0)], [slow]) == []
    assert compare([line("b", seconds=1.0)], [slow]) == []
    assert compare([{**line("a", seconds=1.0), "status": "failed"}], [slow]) == []
    # Only the last measurement of an item counts.
    assert compare([line("a", seconds=1.0)], [slow, line("a", seconds=1.0)]) == []


def test_files_are_named_by_device_model_and_length_and_later_ones_by_their_day(
    tmp_path: Path,
) -> None:
    stem = stem_of("NVIDIA H100 80GB HBM3", "llama3-8b", "32k")
    assert stem == "nvidia-h100-80gb-hbm3-llama3-8b-32k"
    names = []
    for day in ("2026-11-28", "2026-12-01", "2026-12-01", "2027-01-01"):
        path = new_path(tmp_path, stem, day)
        write(path, line("a", seconds=1.0))
        names.append(path.name)
    ends = ["", "-2026-12-01", "-2026-12-01-2", "-2027-01-01"]
    assert names == [f"{stem}{end}.jsonl" for end in ends]
    assert by_device(tmp_path) == {stem: [tmp_path / name for name in names]}


def test_a_line_that_was_cut_short_is_gone_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "gpu-8b-32k.jsonl"
    write(path, line("a", seconds=1.0))
    with path.open("a") as file:
        file.write('{"item": "b", "stat')
    assert [one["item"] for one in read_lines(path)] == ["a"]
    Results(path).append({"item": "c", "status": "ok"})
    assert [one["item"] for one in read_lines(path)] == ["a", "c"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gpu-8b-32k.jsonl"
    path.write_text('{"item": "a", "status": "ok"}\n{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"gpu-8b-32k.jsonl:2: not a line"):
        read_lines(path)


def test_an_item_is_finished_by_its_last_end() -> None:
    ends = [("a", "ok"), ("b", "failed"), ("b", "ok"), ("c", "skipped"), ("d", "failed")]
    lines = [{"item": item, "status": status, "is_end": True} for item, status in ends]
    assert finished([*lines, line("e/part", seconds=1.0)]) == {"a", "b"}


def test_the_table_shows_measured_planned_and_ratio_and_what_failed() -> None:
    lines = [
        {
            **line("buckets/long", seconds=5.5),
            "planned": {"seconds": 5.0},
            "ratio": {"seconds": 1.1},
        },
        {"item": "kl", "status": "failed", "error": "Traceback\nValueError: no"},
    ]
    rows = [row.split() for row in table(lines).splitlines()]
    assert rows[1] == ["buckets/long", "seconds", "5.5", "5", "1.10"]
    assert rows[2] == ["failed:", "kl:", "ValueError:", "no"]
