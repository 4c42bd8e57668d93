"""Metrics journal on disk: the source of truth that MLflow mirrors.

It needs only the standard library, so that a training machine without MLflow can write it;
`longred.runs.follower` sends its content to MLflow.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

JOURNAL_NAME = "metrics.jsonl"


class Journal:
    """Append-only file of metrics, one JSON object per line: key, value, step, time.

    A line that a crash cut in half is ignored by `read` and removed by the next `append`.

    Args:
        path: the file, usually `metrics.jsonl` in a stage's folder; the first `append` creates it
            and its folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: FileIO | None = None

    def append(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write the metrics of one step; other processes see complete lines at once.

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
        file = self._open()
        while remaining:
            remaining = remaining[file.write(remaining) :]

    def truncate_after(self, step: int) -> None:
        """Drop the lines of all later steps, as a resumed training does.

        Raises:
            OSError: the file cannot be rewritten.
        """
        if not self.path.exists():
            return
        lines = [line for line in self.read() if line["step"] <= step]
        self.close()
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def read(self) -> list[dict[str, Any]]:
        """Return all complete lines in the order of writing; an empty list without a file."""
        lines, _ = read_lines(self.path, 0)
        return lines

    def flush(self) -> None:
        """Flush appended lines to disk."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Flush appended lines to disk and close the file; `append` reopens it."""
        if self._file is not None:
            os.fsync(self._file)
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
        return self._file


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Read the complete lines of a journal after a byte offset; return them and the next offset.

    A journal shorter than `offset` (truncated by a resumed training) is read from the start.
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
