"""Write, read, compare and print results of the GPU check: one JSON line per measurement."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]

SPEED_TOLERANCE = 0.15
MEMORY_TOLERANCE = 0.02
_NAME = re.compile(r"(?P<stem>.+?)(?:-(?P<date>\d{4}-\d{2}-\d{2})(?:-(?P<number>\d+))?)?\.jsonl")


def stem_of(device: str, model: str, length: str) -> str:
    """Return the file name of a device's results without suffix, e.g. nvidia-h200-llama3-8b-32k."""
    return re.sub(r"[^a-z0-9]+", "-", f"{device} {model} {length}".lower()).strip("-")


def new_path(folder: Path, stem: str, day: str) -> Path:
    """Return an unused path for a new run: `<stem>.jsonl`, or with the day and a number added."""
    path, number = folder / f"{stem}.jsonl", 1
    while path.exists():
        path = folder / f"{stem}-{day}{f'-{number}' if number > 1 else ''}.jsonl"
        number += 1
    return path


def by_device(folder: Path) -> dict[str, list[Path]]:
    """Return the results files of a folder by stem, oldest first."""
    found: dict[str, list[tuple[str, int, Path]]] = {}
    for path in folder.glob("*.jsonl"):
        match = _NAME.fullmatch(path.name)
        assert match is not None
        key = (match["date"] or "", int(match["number"] or 1), path)
        found.setdefault(match["stem"], []).append(key)
    return {stem: [path for *_, path in sorted(keys)] for stem, keys in sorted(found.items())}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file, without a truncated last line.

    Raises:
        ValueError: a line does not have the GPU check's format.
    """
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    found = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            line["item"], line["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a line of the GPU check ({error!r})") from error
        found.append(line)
    return found


class Results:
    """A results file in which every written line survives a killed process.

    Args:
        path: file, created with its folders; a truncated last line of a killed run is removed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lines = read_lines(path) if path.is_file() else []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        whole = os.pread(self._file, os.fstat(self._file).st_size, 0).rpartition(b"\n")
        os.truncate(self._file, len(whole[0]) + len(whole[1]))
        os.lseek(self._file, 0, os.SEEK_END)

    def append(self, line: dict[str, Any]) -> None:
        """Write a line and wait until it is on disk."""
        text = json.dumps(line)
        os.write(self._file, f"{text}\n".encode())
        os.fsync(self._file)
        # Keep the line as read back from JSON: a tuple would not equal the list in other files.
        self.lines.append(json.loads(text))


def measured_line(
    item: str,
    *,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    planned: Mapping[str, float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a line with the ratio measured / planned of each figure that has a plan."""
    plan = dict(planned or {})
    ratio = {key: measured[key] / value for key, value in plan.items() if value}
    values = {"settings": dict(settings), "measured": dict(measured), "planned": plan}
    return {"item": item, "status": "ok", **values, "ratio": ratio, **more}


def latest(lines: Iterable[Line]) -> dict[str, Line]:
    """Return the last successful line of every name."""
    return {line["item"]: line for line in lines if line["status"] == "ok"}


def finished(lines: Iterable[Line]) -> set[str]:
    """Return the names of the items that ran to their end without failing."""
    state = {line["item"]: line["status"] for line in lines if line.get("is_end")}
    return {item for item, status in state.items() if status == "ok"}


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure that differs by more than its tolerance.

    Attributes:
        item, key: name of the line and of its figure.
        earlier, later: the two values.
        is_worse: whether the later run is slower or needs more memory.
    """

    item: str
    key: str
    earlier: float
    later: float
    is_worse: bool

    def __str__(self) -> str:
        word = "worse" if self.is_worse else "better"
        change = f"{self.earlier:.4g} -> {self.later:.4g}"
        return f"{self.item} {self.key}: {change} ({self.later / self.earlier - 1:+.1%}, {word})"


def compare(earlier: Iterable[Line], later: Iterable[Line]) -> list[Difference]:
    """Return the figures that differ: speed by more than 15 %, peak memory by more than 2 %.

    Only lines with equal settings are compared: another depth is another measurement. Lines with
    `timed_once` are not compared, since their times vary.
    """
    old = latest(earlier)
    found = []
    for item, line in latest(later).items():
        if line.get("timed_once"):
            continue
        if item not in old or old[item].get("settings") != line.get("settings"):
            continue
        before = old[item].get("measured", {})
        for key, value in line.get("measured", {}).items():
            tolerance, more_is_better = _rule(key)
            if tolerance is None or not before.get(key):
                continue
            # Invert rates, so that a change gives the same ratio for rates and for seconds.
            share = before[key] / value if more_is_better else value / before[key]
            if share > 1 + tolerance or share < 1 / (1 + tolerance):
                found.append(Difference(item, key, before[key], value, share > 1))
    return found


def _rule(key: str) -> tuple[float | None, bool]:
    """Return a figure's tolerance (None if it is not compared) and whether higher is better."""
    if key.startswith("first_"):
        return None, False  # Compiling and allocating differ from run to run.
    if key.endswith("_per_second"):
        return SPEED_TOLERANCE, True
    if key.endswith("seconds"):
        return SPEED_TOLERANCE, False
    if key.endswith("peak_bytes"):
        return MEMORY_TOLERANCE, False
    return None, False


SHOWN = (
    "seconds",
    "peak_bytes",
    "times_as_fast",
    "read_tokens_per_second",
    "generated_tokens_per_second",
)
"""Figures shown in the table in addition to those that have a plan."""


def table(lines: Sequence[Line]) -> str:
    """Return a table (item, figure, measured, planned, ratio), then the lines that are not ok."""
    rows = [("item", "figure", "measured", "planned", "ratio")]
    for item, line in latest(lines).items():
        measured, planned = line.get("measured", {}), line.get("planned", {})
        for key in dict.fromkeys([*planned, *(key for key in SHOWN if key in measured)]):
            plan = _shown(key, planned[key]) if key in planned else ""
            ratio = f"{line['ratio'][key]:.2f}" if key in line["ratio"] else ""
            rows.append((item, _shown_key(key), _shown(key, measured[key]), plan, ratio))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    text = [
        "  ".join(
            [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            + [row[column].rjust(widths[column]) for column in (2, 3, 4)]
        )
        for row in rows
    ]
    state = {line["item"]: line for line in lines}
    for item, line in state.items():
        if line["status"] != "ok":
            why = (line.get("error") or line.get("reason") or "").strip().splitlines()
            text.append(f"{line['status']}: {item}: {why[-1] if why else ''}")
    return "\n".join(text)


def _shown_key(key: str) -> str:
    for name, unit in (("flops_per_second", "TFLOP/s"), ("bytes_per_second", "GB/s")):
        key = key.replace(name, unit)
    return key.replace("_bytes", " GiB").replace("_", " ")


def _shown(key: str, value: float) -> str:
    if key.endswith("flops_per_second"):
        return f"{value / 1e12:,.4g}"
    if key.endswith("bytes_per_second"):
        return f"{value / 1e9:,.4g}"
    if key.endswith("_bytes"):
        return f"{value / 2**30:,.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
