"""Where the harness keeps its tasks: by name, without reading 14,000 files as YAML."""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.suites import nearest

_NAME = re.compile(
    r'^["\']?(?:task|group)["\']?:[ \t]*["\']?([^\s"\'#\[{]+)["\']?[ \t]*(?:#.*)?$', re.MULTILINE
)


class _Names:
    """Name → file of every task and group; found by their first lines in half a second."""

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The files, by name."""
        import lm_eval.tasks

        found: dict[str, Path] = {}
        for folder, _, names in os.walk(Path(lm_eval.tasks.__file__).parent):
            for name in sorted(names):
                if name.endswith(".yaml"):
                    path = Path(folder) / name
                    for task in _NAME.findall(path.read_text(encoding="utf-8")):
                        found.setdefault(task, path)
        return found

    def path(self, name: str) -> Path:
        """Return the file of a task or group.

        Raises:
            ConfigError: there is none; offers the nearest names.
        """
        if name not in self.paths:
            raise ConfigError(
                f"evaluation.short: lm-eval has no task {name}; {nearest(name, self.paths)}"
            )
        return self.paths[name]

    def folder(self, name: str) -> Path:
        """Return the folder of a task's file."""
        return self.path(name).parent


NAMES = _Names()


def find_leaves(name: str) -> dict[str, dict[str, Any]]:
    """Return the tasks that a name stands for: itself, or those of a group and of its groups.

    Returns:
        Name → the task's own YAML values, and under `member` what its group changes in it.

    Raises:
        ConfigError: a name is unknown.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    path = NAMES.path(name)
    values = load_yaml(path, resolve_func=False)
    members = values.get("task")
    if "group" not in values or not isinstance(members, list):
        return {name: {**values, "member": {}}}
    found: dict[str, dict[str, Any]] = {}
    for member in members:
        changes: Mapping[str, Any] = {}
        if isinstance(member, Mapping):
            changes = {key: value for key, value in member.items() if key not in ("task", "group")}
            member = member.get("task") or member.get("group")
        names = [str(member)] if member in NAMES.paths else _tagged(str(member), path.parent)
        for leaf, entry in (pair for each in names for pair in find_leaves(each).items()):
            found[leaf] = {**entry, "member": {**entry["member"], **changes}}
    return found


def _tagged(tag: str, folder: Path) -> list[str]:
    """Return the tasks that carry a tag, from the files beside the group that names it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = []
    for path in sorted(folder.rglob("*.yaml")):
        values = load_yaml(path, resolve_func=False)
        tags = values.get("tag") or []
        if tag in ([tags] if isinstance(tags, str) else tags) and "task" in values:
            found.append(str(values["task"]))
    # An unknown name is refused where it is looked up.
    return found or [tag]
