"""Settings of a suite's tasks of lm-eval: local data files, limits, digests; what cannot run."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.errors import ConfigError, MismatchError, PreflightError
from longred.evaluation.lm_eval_errors import import_error
from longred.evaluation.lm_eval_finder import find_leaves, needed_splits, task_file
from longred.evaluation.metrics import local_metrics
from longred.evaluation.own_task_files import local_data, own_digest, own_file, own_folder
from longred.evaluation.suites import SUBSET, SuiteTask, missing_file
from longred.evaluation.tasks import Row, iterate_lines
from longred.store.artifacts import sha256_file

__all__ = ["find_leaves", "leaf_settings", "own_values", "task_file"]

FORMATS = dict.fromkeys((".jsonl", ".json", ".gz", ".zst"), "json")
FORMATS |= {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
"""File extension -> data set builder of the `datasets` package."""
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


class CodeNotAllowedError(PreflightError):
    """The task runs code that a model writes, which was not allowed."""


def leaf_settings(entry: SuiteTask, *, limit: int | None, allow_code: bool) -> dict[str, Row]:
    """Return the settings of a task, or of each task of a group.

    Imports the code of the tasks, so that a missing package is found, but loads no data.

    Args:
        entry: the task of a suite.
        limit: maximum number of samples, beside the entry's own limit.
        allow_code: whether tasks may run code that a model writes.

    Raises:
        ConfigError: there is no such task, or data files are missing, malformed or do not suit it.
        CodeNotAllowedError: the task runs code and may not.
        PreflightError: a package that it needs is missing.
    """
    limits = [n for n in (limit, entry.limit) if n is not None]
    settings: dict[str, Row] = {}
    leaves = find_leaves(str(own_file(entry) or entry.task), own_folder(entry))
    for leaf, values in leaves.items():
        name = entry.name if len(leaves) == 1 else f"{entry.name} ({leaf})"
        merged = {**values, **values["member"], **entry.overrides}
        runs_code = bool(merged.get("unsafe_code"))
        if runs_code and not allow_code:
            raise CodeNotAllowedError(
                f"{name}: runs code that the model writes; set "
                "evaluation.short.allow_code_execution: true where that is safe"
            )
        files, changes = _local_data(entry, name, merged) if entry.data_files else ({}, {})
        settings[leaf] = {
            "name": name,
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
        settings[leaf] |= _own(entry, values, {**changes, **entry.overrides})
        if not files and (data := local_data(merged)):
            settings[leaf]["data_sha256"] = {"local": own_digest(data)}
    if any(map(_has_code, leaves.values())):
        _check_imports(entry, settings)
    return settings


def no_room(entry: SuiteTask, leaf: str, budget_tokens: int, window: int) -> PreflightError:
    """Return the error for a task whose answers may be as long as the window, or longer."""
    values = find_leaves(str(own_file(entry) or entry.task), own_folder(entry))[leaf]
    advice = (
        "set a smaller max_gen_toks in generation_kwargs under `overrides` in a suite of your own"
    )
    if "class" in values:
        # Its own code gives the budget.
        advice = (
            f"{leaf} is a Python class that takes no smaller budget: evaluate a model with a "
            "larger window, or leave the task out with evaluation.short.tasks"
        )
    return PreflightError(
        f"{leaf}: answers take {budget_tokens} tokens, which leaves no room for a prompt in "
        f"{window}, the largest window; {advice}"
    )


def own_values(settings: Mapping[str, Any]) -> Row | None:
    """Return the values of a task in the user's files, with its functions; None for lm-eval's own.

    Raises:
        ConfigError: its files no longer have it.
        MismatchError: they were changed since the samples were frozen.
        ImportError: a function cannot be imported.
    """
    if "origin" not in settings:
        return None
    origin = settings["origin"]
    folder = Path(origin["include_path"]) if origin["include_path"] else None
    leaves = find_leaves(origin["task"], folder, resolve=True)
    if settings["task"] not in leaves:
        raise ConfigError(f"{settings['name']}: {origin['task']} no longer has {settings['task']}")
    values = leaves[settings["task"]]
    if own_digest(values["own"]) != settings["code_sha256"]:
        raise MismatchError(
            f"{settings['name']}: {origin['task']} or its Python files were changed since the "
            "samples were frozen; freeze the samples again"
        )
    own = {key: value for key, value in values.items() if key not in ("member", "file", "own")}
    return {**own, **values["member"]}


def _has_code(values: Mapping[str, Any]) -> bool:
    """Return whether a task has functions: unread, they are paths of files without extension."""
    texts = json.dumps([value for key, value in values.items() if key not in ("file", "own")])
    return not values["file"] or json.dumps(str(Path(values["file"]).parent))[1:-1] in texts


def _own(entry: SuiteTask, values: Mapping[str, Any], changes: Row) -> Row:
    """Return the settings of a task in files of the user: where it is, and what decides its score.

    The values that its groups change may be functions, so they are read again with the file.
    """
    if not values["own"]:
        return {}
    origin = {
        "task": str(own_file(entry) or entry.task),
        "include_path": str(own_folder(entry) or ""),
    }
    return {"origin": origin, "code_sha256": own_digest(values["own"]), "overrides": changes}


def _check_imports(entry: SuiteTask, settings: Mapping[str, Row]) -> None:
    """Import the functions of a task, or of all tasks of a group.

    Raises:
        ConfigError: code of the user cannot be imported.
        PreflightError: a package is missing.
    """
    first = next(iter(settings.values()))
    try:
        with local_metrics():
            find_leaves(str(own_file(entry) or entry.task), own_folder(entry), resolve=True)
    except (ConfigError, PreflightError):
        raise
    except Exception as error:  # code of a task may raise anything while it is imported
        raise import_error({**first, "name": entry.name}, error) from error


def _local_data(
    entry: SuiteTask, name: str, values: Mapping[str, Any]
) -> tuple[dict[str, str], Row]:
    """Return a task's local data files by split, and the YAML values that make lm-eval read them.

    Raises:
        ConfigError: a split is missing from the files, or a file is missing, is empty, has an
            unknown format or a line that is not a JSON object; names the line.
    """
    subset = str(values.get("dataset_name") or "")
    for split, path in entry.data_files.items():
        if SUBSET in path and not subset:
            raise ConfigError(
                f"{name}: data_files.{split}: {path}: the task has no subset that could take the "
                f"place of {SUBSET}; write the whole path"
            )
    given = {split: path.replace(SUBSET, subset) for split, path in entry.data_files.items()}
    files = {split: str(Path(path).expanduser().resolve()) for split, path in given.items()}
    if "class" not in values:
        _check_splits(name, entry, values, files)
    formats = {FORMATS.get(Path(path).suffix) for path in files.values()}
    if None in formats or len(formats) > 1:
        raise ConfigError(
            f"{name}: data_files must have one common format: {', '.join(sorted(FORMATS))}"
        )
    for split, file in ((split, Path(path)) for split, path in files.items()):
        if not file.is_file():
            raise missing_file(name, split, given[split])
        if file.suffix == ".jsonl":
            _check_lines(f"{name}: data_files.{split}", file)
    if "class" in values:
        # Its own code loads the data: see `lm_eval_classes`.
        return files, {}
    changes: Row = {"dataset_path": formats.pop(), "dataset_name": None}
    if values.get("custom_dataset"):
        # The file replaces the rows that the task's own code would load.
        changes["custom_dataset"] = None
    unused = [key for key in _SPLITS if values.get(key) and values[key] not in files]
    return files, {**changes, **dict.fromkeys(unused)}


def _check_lines(key: str, file: Path) -> None:
    """Check that each line of a data file is a JSON object, and that there is one."""
    try:
        num_rows = sum(1 for _ in iterate_lines(file))
    except MismatchError as error:
        # Nothing recorded differs: the file is what the user just gave.
        raise ConfigError(f"{key}: {error}") from error
    if num_rows == 0:
        raise ConfigError(f"{key}: {file} is empty")


def _check_splits(
    name: str, entry: SuiteTask, values: Mapping[str, Any], files: Mapping[str, str]
) -> None:
    """Check that the files include the evaluated split and the one with few-shot examples."""
    needed = needed_splits(values, entry.num_fewshot)
    evaluated, examples = needed["evaluated"], needed.get("examples")
    if evaluated not in files:
        raise ConfigError(
            f"{name}: data_files lacks the split {evaluated}; "
            f"give `{evaluated}: /path/to/file.jsonl`"
        )
    if examples is not None and examples not in files:
        shots = values.get("num_fewshot") if entry.num_fewshot is None else entry.num_fewshot
        raise ConfigError(
            f"{name}: data_files lacks the split {examples}, which its {shots} examples come from; "
            f"give `{examples}: /path/to/file.jsonl` or num_fewshot: 0"
        )
