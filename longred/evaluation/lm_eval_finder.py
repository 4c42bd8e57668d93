"""Finds tasks of lm-eval by name, and the user's own by file or folder; expands groups, own tags.

lm-eval's own lookup parses 14,000 YAML files; here a regular expression finds the names.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import GROUP_FIELD_NAMES
from lm_eval.tasks._yaml_loader import load_yaml

from longred.errors import ConfigError, shorten
from longred.evaluation.own_task_files import SUFFIXES, files_of, yaml_files
from longred.evaluation.suites import nearest
from longred.evaluation.tasks import Row

_NAME = re.compile(
    r'^["\']?(?:task|group)["\']?:[ \t]*["\']?([^\s"\'#\[{]+)["\']?[ \t]*(?:#.*)?$', re.MULTILINE
)


@functools.cache
def task_files() -> dict[str, Path]:
    """Return the YAML file of every task and group of lm-eval; takes half a second."""
    files: dict[str, Path] = {}
    for folder, _, names in os.walk(Path(lm_eval.tasks.__file__).parent):
        for name in sorted(names):
            if name.endswith(".yaml"):
                path = Path(folder) / name
                for task in _NAME.findall(path.read_text(encoding="utf-8")):
                    files.setdefault(task, path)
    return files


@functools.cache
def _tags_beside(folder: Path) -> dict[str, list[str]]:
    """Return the tags of lm-eval's tasks in one folder: tag -> names of tasks."""
    index = TaskManager(include_defaults=False, include_path=[folder]).task_index
    return {name: sorted(entry.tags) for name, entry in index.items() if entry.kind.name == "TAG"}


def task_file(name: str) -> Path:
    """Return the YAML file of a task or group of lm-eval.

    Raises:
        ConfigError: the name is unknown; suggests the nearest names.
    """
    if name not in task_files():
        raise ConfigError(
            f"evaluation.short: lm-eval has no task {name}; {nearest(name, task_files())}"
        )
    return task_files()[name]


def find_leaves(name: str, folder: Path | None = None, *, resolve: bool = False) -> dict[str, Row]:
    """Return the task of a name, or all tasks of a group, of its groups, or of a tag of the user.

    Args:
        name: a name that the folder has, a task or group of lm-eval, or the path of a YAML file.
        folder: YAML files of the user; its names come before those of lm-eval.
        resolve: replace `!function` by the functions, which imports the files that hold them.

    Returns:
        Task name -> the values of its YAML file; in `member` the values that its groups change; in
        `file` the path of the YAML file, empty for a task that its group holds; and in `own` the
        files of the user that decide how the task is scored, none for a task of lm-eval.

    Raises:
        ConfigError: a name is unknown, or a file of the user is no task of lm-eval.
        ImportError: a function cannot be imported.
    """
    finder = _Finder(name, folder, resolve)
    leaves = finder.leaves()
    for values in leaves.values():
        # Inner groups change values of their members from any folder.
        roots = {Path(values["file"]), *finder.groups}
        files = [root for root in roots if root.is_file() and not _is_of_lm_eval(root)]
        values["own"] = sorted({str(path) for root in files for path in files_of(root)})
    return leaves


def _is_of_lm_eval(path: Path) -> bool:
    return path.is_relative_to(Path(lm_eval.tasks.__file__).parent)


def needed_splits(values: Mapping[str, Any], num_fewshot: int | None) -> dict[str, str]:
    """Return the splits that a task reads: `evaluated`, and `examples` if prompts hold some.

    Args:
        values: its YAML values.
        num_fewshot: number of examples; None for the task's own.
    """
    evaluated = str(values.get("test_split") or values.get("validation_split"))
    shots = values.get("num_fewshot") if num_fewshot is None else num_fewshot
    fewshot = values.get("fewshot_config") or {}
    if not shots or (isinstance(fewshot, Mapping) and "samples" in fewshot):
        return {"evaluated": evaluated}
    keys = ("fewshot_split", "training_split", "validation_split")
    examples = str(next((values[key] for key in keys if values.get(key)), evaluated))
    return {"evaluated": evaluated, "examples": examples}


class _Finder:
    """Expands one name: the user's tasks, groups and tags first, then those of lm-eval."""

    def __init__(self, name: str, folder: Path | None, resolve: bool) -> None:
        self.name, self.resolve = name, resolve
        self.own: dict[str, Path] = {}
        self.twice: dict[str, Path] = {}
        self.tags: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.groups: set[Path] = set()
        self.start = Path(name) if name.endswith(SUFFIXES) else None
        if folder is not None:
            self._index(folder)
        if self.start is not None:
            values = self._load(self.start)
            if isinstance(values.get("task"), list):
                self._index(self.start.parent)

    def leaves(self) -> dict[str, Row]:
        if self.start is None:
            return self._named(self.name, {})
        values = self._load(self.start)
        name = values.get("group") if isinstance(values.get("task"), list) else values.get("task")
        if not isinstance(name, str):
            raise ConfigError(
                f"{self.start}: is no task of lm-eval: it needs `task:` and a name, or `group:`, a "
                "name and `task:` with a list"
            )
        return self._expand(name, values, self.start, {})

    def _index(self, folder: Path) -> None:
        """Note the tasks, groups and tags of the user's YAML files below a folder."""
        for path in yaml_files(folder):
            try:
                values = load_yaml(path, resolve_func=False)
            except (OSError, ValueError, yaml.YAMLError) as error:
                # The folder may hold files for other programs; named if a task is missing.
                self.problems.append(shorten(f"{path}: {_first_line(error)}"))
                continue
            name = values.get("group") if "class" not in values else None
            name = name or values.get("task")
            if not isinstance(name, str):
                continue
            if self.own.setdefault(name, path) != path:
                self.twice[name] = path
            tags = values.get("tag") or []
            for tag in [tags] if isinstance(tags, str) else tags:
                self.tags.setdefault(tag, []).append(name)

    def _load(self, path: Path, *, resolve: bool = False) -> Row:
        """Read a YAML file; a mistake in a file of the user is a `ConfigError`."""
        try:
            return dict(load_yaml(path, resolve_func=resolve))
        except ImportError:
            raise
        except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
            raise ConfigError(shorten(f"{path}: cannot be read ({_first_line(error)})")) from error

    def _named(
        self, name: str, changes: Mapping[str, Any], beside: Path | None = None
    ) -> dict[str, Row]:
        """Expand the name of a task, group or tag."""
        if name in self.twice:
            paths = f"{self.own[name]} and {self.twice[name]}"
            raise ConfigError(f"{paths}: both are named {name}; rename one of them")
        path = self.own.get(name)
        if path is None and name in self.tags:
            return self._all(self.tags[name], changes)
        if path is None and beside is not None and name not in task_files():
            tagged = _tags_beside(beside.parent).get(name)
            if tagged:
                return self._all(tagged, changes)
        if path is None:
            path = self._of_lm_eval(name)
        return self._expand(name, self._load(path), path, changes)

    def _of_lm_eval(self, name: str) -> Path:
        known = {**task_files(), **self.own, **dict.fromkeys(self.tags)}
        if name in task_files():
            return task_files()[name]
        unread = f"; cannot be read: {self.problems[0]}" if self.problems else ""
        raise ConfigError(
            f"evaluation.short: lm-eval has no task or group {name} (name the tasks of a "
            f"tag); {nearest(name, known)}{unread}"
        )

    def _all(self, names: list[str], changes: Mapping[str, Any]) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for name in sorted(names):
            found |= self._named(name, changes)
        return found

    def _expand(
        self, name: str, values: Row, path: Path | None, changes: Mapping[str, Any]
    ) -> dict[str, Row]:
        """Return the tasks of one file; `changes` come from its groups, the inner ones win."""
        if not isinstance(values.get("task"), list):
            if self.resolve and path is not None:
                values = self._load(path, resolve=True)
            return {name: {**values, "member": dict(changes), "file": str(path or "")}}
        if path is not None:
            self.groups.add(path)
            if self.resolve:
                values = self._load(path, resolve=True)
        # As in lm-eval: a group's own values, those of its groups, those of the member.
        own = {key: value for key, value in values.items() if key not in GROUP_FIELD_NAMES}
        changes = {**own, **changes}
        found: dict[str, Row] = {}
        for member in values["task"]:
            found |= self._member(name, member, path, changes)
        return found

    def _member(
        self, group: str, member: Any, path: Path | None, changes: Mapping[str, Any]
    ) -> dict[str, Row]:
        """Return the tasks of one entry in a group's list."""
        if isinstance(member, str):
            return self._named(member, changes, path)
        if not isinstance(member, Mapping) or not ({"task", "group"} & set(member)):
            raise ConfigError(f"{path}: {group}: its tasks are names, or hold `task:` or `group:`")
        name = str(member.get("group") or member["task"])
        inner = {key: value for key, value in member.items() if key not in ("task", "group")}
        if isinstance(member.get("task"), list) and not self._knows(name):
            return self._expand(f"{group}::{name}", dict(member), None, changes)
        merged = {**changes, **inner}
        if not self._knows(name) and {"dataset_path", "custom_dataset"} & set(merged):
            return {f"{group}::{name}": {**merged, "task": name, "member": {}, "file": ""}}
        return self._named(name, merged, path)

    def _knows(self, name: str) -> bool:
        return name in self.own or name in self.tags or name in task_files()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
