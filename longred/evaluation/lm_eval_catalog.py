"""Finds tasks of lm-eval by name, and replaces their hub data with local files.

lm-eval's own lookup parses 14,000 YAML files; here a regular expression finds the names.
"""

import functools
import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from longred.errors import ConfigError, MismatchError, PreflightError
from longred.evaluation.suites import SuiteTask, missing_file, nearest
from longred.evaluation.tasks import Row, iterate_lines
from longred.store.artifacts import sha256_file

FORMATS = dict.fromkeys((".jsonl", ".json", ".gz", ".zst"), "json")
FORMATS |= {".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
"""File extension -> data set builder of the `datasets` package."""
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
_NAME = re.compile(
    r'^["\']?(?:task|group)["\']?:[ \t]*["\']?([^\s"\'#\[{]+)["\']?[ \t]*(?:#.*)?$', re.MULTILINE
)


@functools.cache
def task_files() -> dict[str, Path]:
    """Return the YAML file of every task and group; takes half a second."""
    files: dict[str, Path] = {}
    for folder, _, names in os.walk(Path(lm_eval.tasks.__file__).parent):
        for name in sorted(names):
            if name.endswith(".yaml"):
                path = Path(folder) / name
                for task in _NAME.findall(path.read_text(encoding="utf-8")):
                    files.setdefault(task, path)
    return files


@functools.cache
def task_manager(folder: Path) -> TaskManager:
    """Return lm-eval's manager of the tasks in one folder."""
    return TaskManager(include_defaults=False, include_path=[folder])


def task_file(name: str) -> Path:
    """Return the YAML file of a task or group.

    Raises:
        ConfigError: the name is unknown; suggests the nearest names.
    """
    if name not in task_files():
        raise ConfigError(
            f"evaluation.short: lm-eval has no task {name}; {nearest(name, task_files())}"
        )
    return task_files()[name]


def find_leaves(name: str) -> dict[str, Row]:
    """Return the task of a name, or all tasks of a group and of its groups.

    Returns:
        Task name -> the values of its YAML file, and in `member` the values that its group changes.

    Raises:
        ConfigError: a name is unknown.
    """
    path = task_file(name)
    values = load_yaml(path, resolve_func=False)
    members = values.get("task")
    if "group" not in values or not isinstance(members, list):
        return {name: {**values, "member": {}}}
    leaves: dict[str, Row] = {}
    for member in members:
        changes: Mapping[str, Any] = {}
        if isinstance(member, Mapping):
            changes = {key: value for key, value in member.items() if key not in ("task", "group")}
            member = member.get("task") or member.get("group")
        names = [str(member)]
        if member not in task_files() and (tag := task_manager(path.parent).task_index.get(member)):
            names = sorted(tag.tags)
        for each in names:
            for leaf, entry in find_leaves(each).items():
                leaves[leaf] = {**entry, "member": {**entry["member"], **changes}}
    return leaves


def leaf_settings(entry: SuiteTask, *, limit: int | None, allow_code: bool) -> dict[str, Row]:
    """Return the settings of a task, or of each task of a group.

    Args:
        entry: the task of a suite.
        limit: maximum number of samples, beside the entry's own limit.
        allow_code: whether tasks may run code that a model writes.

    Raises:
        ConfigError: lm-eval has no such task, or data files are missing or do not suit it.
        MismatchError: a data file is malformed.
        PreflightError: the task runs code and may not.
    """
    limits = [n for n in (limit, entry.limit) if n is not None]
    settings = {}
    for leaf, values in find_leaves(entry.task).items():
        runs_code = bool(values.get("unsafe_code"))
        if runs_code and not allow_code:
            raise PreflightError(
                f"{_label(entry, leaf)}: runs code that the model writes; set "
                "evaluation.short.allow_code_execution: true where that is safe"
            )
        files, changes = _local_data(entry, values) if entry.data_files else ({}, {})
        settings[leaf] = {
            "name": _label(entry, leaf),
            "task": leaf,
            "metric": entry.metric,
            "filter": entry.filter,
            "scale": entry.scale,
            "chance": entry.chance,
            "num_fewshot": entry.num_fewshot,
            "limit": min(limits, default=None),
            "overrides": {**values["member"], **changes, **entry.overrides},
            "data_files": files,
            "data_sha256": {split: sha256_file(Path(path)) for split, path in files.items()},
            "allow_code": runs_code,
            "lm_eval": importlib.metadata.version("lm-eval"),
        }
    return settings


def _local_data(entry: SuiteTask, values: Mapping[str, Any]) -> tuple[dict[str, str], Row]:
    """Return a task's local data files by split, and the YAML values that make lm-eval read them.

    Raises:
        ConfigError: the task does not read a data set by split, a split is missing from the files,
            or a file is missing or has an unknown format.
        MismatchError: a file is empty, or a line is not a JSON object; names the line.
    """
    name = _label(entry, str(values.get("task")))
    if "class" in values:
        raise ConfigError(
            f"{name}: loads its data with its own code; data_files cannot replace them"
        )
    subset = str(values.get("dataset_name") or "")
    given = {split: path.replace("{subset}", subset) for split, path in entry.data_files.items()}
    files = {split: str(Path(path).expanduser().resolve()) for split, path in given.items()}
    _check_splits(name, entry, values, files)
    formats = {FORMATS.get(Path(path).suffix) for path in files.values()}
    if None in formats or len(formats) > 1:
        raise ConfigError(
            f"{name}: data_files must have one common format: {', '.join(sorted(FORMATS))}"
        )
    for split, path in ((split, Path(file)) for split, file in files.items()):
        if not path.is_file():
            raise missing_file(name, split, given[split])
        if path.suffix == ".jsonl" and not sum(1 for _ in iterate_lines(path)):
            raise MismatchError(f"{path}: is empty")
    changes: Row = {"dataset_path": formats.pop(), "dataset_name": None}
    if values.get("custom_dataset"):
        # The file replaces the rows that the task's own code would load.
        changes["custom_dataset"] = None
    unused = [key for key in _SPLITS if values.get(key) and values[key] not in files]
    return files, {**changes, **dict.fromkeys(unused)}


def _label(entry: SuiteTask, leaf: str) -> str:
    """Return the name of a suite's task, with that of the group's member if it is a group."""
    return entry.name if leaf == entry.task else f"{entry.name} ({leaf})"


def _check_splits(
    name: str, entry: SuiteTask, values: Mapping[str, Any], files: Mapping[str, str]
) -> None:
    """Check that the files include the evaluated split and the one with few-shot examples."""
    evaluated = str(values.get("test_split") or values.get("validation_split"))
    if evaluated not in files:
        raise ConfigError(
            f"{name}: data_files lacks the split {evaluated}; "
            f"give `{evaluated}: /path/to/file.jsonl`"
        )
    shots = values.get("num_fewshot") if entry.num_fewshot is None else entry.num_fewshot
    fewshot = values.get("fewshot_config") or {}
    if not shots or (isinstance(fewshot, Mapping) and "samples" in fewshot):
        return
    keys = ("fewshot_split", "training_split", "validation_split")
    source = str(next((values[key] for key in keys if values.get(key)), evaluated))
    if source not in files:
        raise ConfigError(
            f"{name}: data_files lacks the split {source}, which its {shots} examples come from; "
            f"give `{source}: /path/to/file.jsonl` or num_fewshot: 0"
        )
