"""Rows of a benchmark's files: JSON Lines, JSON or Parquet, local or at a commit on the hub."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from longred.errors import ConfigError, PreflightError, shorten
from longred.evaluation.suites import HUB_PREFIX, missing_file
from longred.models.hub import HUB
from longred.store.artifacts import sha256_file

_HUB_PATH = re.compile(
    HUB_PREFIX + r"(?P<name>[^/@]+/[^/@]+)@(?P<revision>[0-9a-f]{40})/(?P<file>.+)"
)

M = TypeVar("M", bound=BaseModel)


def identities(files: Mapping[str, str]) -> dict[str, str]:
    """Return what identifies each file: the hash of its content, or its commit on the hub."""
    return {
        split: hashlib.sha256(path.encode()).hexdigest()
        if path.startswith(HUB_PREFIX)
        else sha256_file(Path(path).expanduser())
        for split, path in files.items()
    }


def check_file(name: str, split: str, path: str) -> None:
    """Check that a file exists, or that its place on the hub is pinned; downloads nothing.

    Raises:
        ConfigError: the file is missing, or the place names no full commit.
    """
    if path.startswith(HUB_PREFIX):
        if not _HUB_PATH.fullmatch(path):
            raise ConfigError(
                f"{name}: data_files.{split}: {path}: must be "
                f"{HUB_PREFIX}owner/name@commit/file with the full commit hash (40 hexadecimal "
                "digits), since a branch can move"
            )
    elif not Path(path).expanduser().is_file():
        raise missing_file(name, split, path)


def local_file(name: str, split: str, path: str) -> Path:
    """Return a file's local path; download it if it is on the hub.

    Raises:
        ConfigError: see `check_file`.
        PreflightError: the hub cannot be reached, or has no such file.
    """
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    check_file(name, split, path)
    place = _HUB_PATH.fullmatch(path)
    if place is None:
        return Path(path).expanduser()
    HUB.probe()
    try:
        found = hf_hub_download(
            place["name"], place["file"], repo_type="dataset", revision=place["revision"]
        )
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        reason = HUB.problem or f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise PreflightError(
            f"{name}: data_files.{split}: {path} cannot be fetched ({reason}); connect to the hub, "
            "or download the file and give its local path"
        ) from error
    return Path(found)


class Table:
    """Rows of one or more files; a line of JSON Lines is parsed when it is asked for.

    Args:
        name: the task, for messages.
        paths: files that end in jsonl, json (a list, or an object with the list in `data`) or
            parquet.

    Raises:
        ConfigError: a file is empty, not valid, or of another format; names file and line.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name = name
        self._rows: list[tuple[Path, int, Callable[[], Any]]] = []
        for path in paths:
            before = len(self._rows)
            if path.suffix == ".jsonl":
                self._add_lines(path)
            elif path.suffix == ".json":
                self._add_list(path)
            elif path.suffix == ".parquet":
                self._add_parquet(path)
            else:
                raise ConfigError(f"{name}: {path}: must end in jsonl, json or parquet")
            if len(self._rows) == before:
                raise ConfigError(f"{name}: {path}: has no rows")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def place(self, number: int) -> str:
        """Return the task, the file and the line or row (from 1) of a row, for messages."""
        path, row, _ = self._rows[number]
        colon = ":" if path.suffix == ".jsonl" else ": row "
        return f"{self.name}: {path}{colon}{row}"

    def values(self, number: int) -> dict[str, Any]:
        """Return a row as it is in its file.

        Raises:
            ConfigError: the row is not a JSON object.
        """
        try:
            values = self._rows[number][2]()
        except ValueError as error:
            raise ConfigError(f"{self.place(number)}: is not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{self.place(number)}: is not a JSON object")
        return values

    def row(self, number: int, model: type[M]) -> M:
        """Return a row as a model of its fields.

        Raises:
            ConfigError: a field is missing or has the wrong type.
        """
        try:
            return model.model_validate(self.values(number))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            message = problem["msg"][0].lower() + problem["msg"][1:]
            raise ConfigError(shorten(f"{self.place(number)}: {field}: {message}")) from None

    def _add_lines(self, path: Path) -> None:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._rows.append((path, number, partial(_line_at, path, start)))
                start += len(line)

    def _add_list(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{self.name}: {path}:{error.lineno}: is not valid JSON ({error.msg})"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.name}: {path}: is not UTF-8 ({error})") from error
        rows = content.get("data") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise ConfigError(f"{self.name}: {path}: holds no list, and no list in `data`")
        self._rows += [(path, number, partial(_same, row)) for number, row in enumerate(rows, 1)]

    def _add_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.name}: {path}: is not Parquet ({error})") from error

        self._rows += [
            (path, index + 1, partial(_row_of, table, index)) for index in range(table.num_rows)
        ]


def _line_at(path: Path, start: int) -> Any:
    with path.open("rb") as file:
        file.seek(start)
        return json.loads(file.readline())


def _same(value: Any) -> Any:
    return value


def _row_of(table: Any, index: int) -> Any:
    return table.slice(index, 1).to_pylist()[0]
