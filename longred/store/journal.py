"""The journal of metrics on disk: the truth, which MLflow only shows.

The journal needs only the standard library, so that a bare training box can write it; MLflow lives
in `longred.runs.follower` and reads what is written here.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JOURNAL_NAME = "metrics.jsonl"


class Journal:
    """An append-only file of metrics, one JSON object a line: key, value, step, time.

    A line that a crash cut in half is dropped: by `read`, and from the file by the next `append`.

    Args:
        path: the file, usually `metrics.jsonl` in a stage's folder; it and its folder are created
            by the first `append`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    def append(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write the metrics of one step; other processes see whole lines at once.

        Raises:
            ValueError: a value is NaN or infinite; the message names its key.
        """
        now = round(time.time(), 3)
        lines = []
        for key, value in metrics.items():
            number = float(value)
            if not math.isfinite(number):
                raise ValueError(
                    f"metric {key} is {number} at step {step}; a journal holds finite numbers"
                )
            lines.append(
                json.dumps({"key": key, "value": number, "step": int(step), "time": now}) + "\n"
            )
        remaining = memoryview("".join(lines).encode())
        descriptor = self._open()
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]

    def truncate_after(self, step: int) -> None:
        """Drop every line of a later step, as a resumed training does before it goes on.

        Raises:
            OSError: the file cannot be rewritten.
        """
        if not self.path.exists():
            return
        kept = [line for line in self.read() if line["step"] <= step]
        self.close()
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def read(self) -> list[dict[str, Any]]:
        """Return every whole line, in the order of writing; none when there is no file yet."""
        lines, _ = read_lines(self.path, 0)
        return lines

    def flush(self) -> None:
        """Force what was appended onto the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Force what was appended onto the disk and close the file; `append` opens it again."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            os.ftruncate(self._descriptor, _whole_bytes(self._descriptor))
        return self._descriptor


def _whole_bytes(descriptor: int) -> int:
    """Return the size of a file up to the end of its last whole line."""
    size = os.fstat(descriptor).st_size
    end = size
    while end:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Read the whole lines of a journal from a byte offset; return them and the offset after them.

    A journal that became shorter than `offset` (a resumed training cut it) is read from its start.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(offset if offset <= size else 0)
            start = file.tell()
            text = file.read()
    except FileNotFoundError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()], start + len(whole)
