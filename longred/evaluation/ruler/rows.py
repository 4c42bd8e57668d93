"""Reads rows of a JSON lines or parquet file, of a dataset's folder, or of a dataset on the hub."""

import gzip
import json
import re
import zlib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from longred.errors import ConfigError, PreflightError, where_paths_start

LINE_SUFFIXES = (".jsonl", ".jsonl.gz")
ROW_SUFFIXES = (*LINE_SUFFIXES, ".parquet")

Row = dict[str, Any]

_WRONG = {
    "missing": "is missing",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list of two items",
    "too_short": "must not be empty",
    "too_long": "has too many items",
    "string_too_short": "must not be empty",
    "model_type": "must be an object",
    "dict_type": "must be an object",
}
_OTHER = "has another type than this kind of file"
"""What is wrong with a value of a file of questions, by pydantic's name."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows or questions are read from.

    Attributes:
        key: the setting that named it, in messages.
        path: a local file or folder, or the name of a dataset on the hub.
        revision: commit of a dataset on the hub.
        subset: subset of a dataset, which is a folder in it; None for its only one.
        split: split of a dataset.
    """

    key: str
    path: str
    revision: str | None = None
    subset: str | None = None
    split: str = "validation"

    @property
    def local(self) -> Path:
        """The local path."""
        return Path(self.path).expanduser()

    @property
    def is_on_hub(self) -> bool:
        """Whether it is a name on the hub: no local file or folder, nor a mistyped one."""
        from longred.models.find import is_hub_name

        return is_hub_name(self.path) and not self.path.endswith((".json", *ROW_SUFFIXES))

    @property
    def has_rows(self) -> bool:
        """Whether it has the hub's form, rows, and not that of the original file."""
        return self.is_on_hub or self.local.is_dir() or self.path.endswith(ROW_SUFFIXES)

    def __str__(self) -> str:
        """Return its description for display."""
        return f"{self.path} at {self.revision}" if self.is_on_hub else str(self.local)


def read_rows(source: Source) -> list[Row]:
    """Return the rows of a source, as plain values.

    Raises:
        ConfigError: a file is missing or malformed, the hub's revision is not pinned, or a dataset
            has no such subset or split; names the setting and the file.
        PreflightError: a dataset cannot be fetched.
    """
    if source.is_on_hub:
        _check_revision(source)
        return _read_files(source, _download(source))
    if source.local.is_dir():
        return _read_files(source, source.local)
    if source.path.endswith(LINE_SUFFIXES):
        return _read_lines(source)
    return _read_parquet(source)


def read_text(path: Path, key: str, *, is_compressed: bool = False) -> str:
    """Return the text of a file in UTF-8, which may be compressed by gzip.

    Raises:
        ConfigError: it is missing or malformed; names the setting `key`, the file and its line.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if is_compressed else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{key}: {path}: is not a gzip file, or damaged ({error})") from error
    except OSError as error:
        where = where_paths_start(path)
        raise ConfigError(f"{key}: {path}: cannot be read ({error.strerror}){where}") from error
    try:
        # As in text mode, every kind of line end is read as one.
        return re.sub("\r\n?", "\n", content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{key}: {path}:{line}: is not UTF-8; convert it or leave it out"
        ) from error


def parse_json(text: str, path: Path, key: str, first_line: int = 1) -> Any:
    """Return the value of a JSON text that starts at a line of a file.

    Raises:
        ConfigError: it is not JSON; names the setting `key`, the file and the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ConfigError(f"{key}: {path}:{line}: is not valid JSON ({error.msg})") from error


def validated(schema: Any, value: Any, place: str) -> Any:
    """Return the parsed value.

    Raises:
        ConfigError: the value does not suit the schema; names `place` and where in the value.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        where = "".join(parts).lstrip(".") or "the file"
        what = str(problem.get("ctx", {}).get("error") or _WRONG.get(problem["type"], _OTHER))
        raise ConfigError(f"{place}: {where}: {what}") from None


def _read_lines(source: Source) -> list[Row]:
    path, key = source.local, source.key
    # Other characters that end lines elsewhere may stand in JSON texts.
    text = read_text(path, key, is_compressed=path.suffix == ".gz")
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(line, path, key, number) for number, line in lines if line.strip()]


def _read_parquet(source: Source) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    path, key = source.local, source.key
    try:
        rows: list[Row] = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{key}: {path}: is not a parquet file ({error})") from error
    except OSError as error:
        reason, where = error.strerror or error, where_paths_start(path)
        raise ConfigError(f"{key}: {path}: cannot be read ({reason}){where}") from error
    return rows


def _check_revision(source: Source) -> None:
    if re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        return
    where = where_paths_start(source.path)
    raise ConfigError(
        f"{source.key}: {source.path} is no file or folder here{where}, so it is looked for on the "
        f"hub, and there {source.key}_revision must be the full commit hash (40 hexadecimal "
        f"digits), since a branch can move; got {source.revision or 'none'}"
    )


def _read_files(source: Source, folder: Path) -> list[Row]:
    """Return the rows of a split of a dataset; `folder` is a copy of its repository, or of a part.

    Raises:
        ConfigError: the folder holds no file of the split, or those of several subsets.
    """
    found: dict[Path, list[Path]] = {}
    for path in sorted(each for each in folder.rglob("*") if each.name.endswith(ROW_SUFFIXES)):
        name = path.relative_to(folder).as_posix()
        if any(fnmatchcase(name, pattern) for pattern in _patterns(source)):
            found.setdefault(path.parent, []).append(path)
    if len(found) > 1:
        names = ", ".join(str(each.relative_to(folder)) for each in found)
        raise ConfigError(
            f"{source.key}: {source}: holds {source.split} in {names}; name one of them as "
            f"{source.key}_subset"
        )
    if not found:
        raise ConfigError(
            f"{source.key}: {source}: holds no file {' or '.join(_patterns(source))}; set "
            f"{source.key}_subset and {source.key}_split to those of the dataset"
        )
    (paths,) = found.values()
    return [row for path in paths for row in read_rows(replace(source, path=str(path)))]


def _patterns(source: Source) -> list[str]:
    """Return patterns of the names that datasets give to the files of a split."""
    folders = ("", "*/") if source.subset is None else (f"{source.subset}/",)
    return [
        f"{folder}{source.split}*{suffix}"
        for suffix in (".parquet", *LINE_SUFFIXES)
        for folder in folders
    ]


def _download(source: Source) -> Path:
    """Return the local copy of a dataset on the hub; download the missing files of the split.

    Raises:
        PreflightError: the hub cannot be reached, or refuses the dataset.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    from longred.models.hub import HUB

    HUB.probe()
    try:
        folder = snapshot_download(
            source.path,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=_patterns(source),
        )
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        reason = HUB.problem or f"{type(error).__name__}: {error}".partition("\n")[0]
        raise PreflightError(
            f"{source.key}: the dataset {source} cannot be fetched ({reason}); check the network "
            "and the name, log in with `hf auth login` if it is gated, or download it and set "
            f"{source.key} to its folder or file"
        ) from error
    return Path(folder)
