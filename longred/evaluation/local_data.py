"""Local files in place of a data set of the hub, read through before the harness sees them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.errors import ConfigError, MismatchError
from longred.evaluation.suites import SuiteTask

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".gz": "json",
    ".zst": "json",
}
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


def override(entry: SuiteTask, values: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the files of a task by split, and what of its YAML they replace.

    Args:
        entry: the task of a suite, with its `data_files`.
        values: the harness's own YAML of the task.

    Raises:
        ConfigError: the task does not read a data set by split, a split that it needs is not given,
            or a file is of an unknown kind.
        MismatchError: a file is missing, or a line of it is not a JSON object; names the line.
    """
    if not entry.data_files:
        return {}, {}
    leaf = str(values.get("task"))
    if "class" in values:
        raise ConfigError(
            f"{leaf}: loads its data by code of its own; data_files cannot replace them"
        )
    subset = str(values.get("dataset_name") or "")
    files = {
        split: str(Path(path.replace("{subset}", subset)).expanduser().resolve())
        for split, path in entry.data_files.items()
    }
    _check_splits(leaf, entry, values, files)
    formats = {FORMATS.get(Path(path).suffix) for path in files.values()}
    if None in formats or len(formats) > 1:
        raise ConfigError(f"{leaf}: data_files must be of one kind: {', '.join(sorted(FORMATS))}")
    for path in files.values():
        check_file(Path(path))
    changes = {"dataset_path": formats.pop(), "dataset_name": None}
    if values.get("custom_dataset"):
        # The file has the rows that the task's own code would have loaded.
        changes["custom_dataset"] = None
    needless = [key for key in _SPLITS if values.get(key) and values[key] not in files]
    return files, {**changes, **dict.fromkeys(needless)}


def _check_splits(
    leaf: str, entry: SuiteTask, values: Mapping[str, Any], files: Mapping[str, str]
) -> None:
    asked = values.get("test_split") or values.get("validation_split")
    needed = [str(asked)]
    shots = values.get("num_fewshot") if entry.num_fewshot is None else entry.num_fewshot
    examples = values.get("fewshot_config") or {}
    has_own = isinstance(examples, Mapping) and "samples" in examples
    if shots and not has_own:
        source = values.get("fewshot_split") or values.get("training_split")
        needed.append(str(source or values.get("validation_split") or asked))
    for split in needed:
        if split not in files:
            raise ConfigError(
                f"{leaf}: data_files lacks the split {split}"
                + ("" if split == asked else f", which its {shots} examples come from")
                + f"; give `{split}: /path/to/file.jsonl`"
                + ("" if split == asked else " or num_fewshot: 0")
            )


def check_file(path: Path) -> None:
    """Read a file of JSON lines through.

    Raises:
        MismatchError: it is missing, empty, or a line is not a JSON object; names the line.
    """
    if not path.is_file():
        raise MismatchError(f"{path}: is missing; see data_files of the suite")
    if path.suffix != ".jsonl":
        return
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MismatchError(f"{path}:{number}: is not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise MismatchError(f"{path}:{number}: is not a JSON object")
    if not number:
        raise MismatchError(f"{path}: is empty")
