"""The user's own task files of lm-eval: where they are, and which files decide their scores.

Needs no lm-eval, so that a missing file is named and a digest is known before it is imported.
"""

import contextlib
import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from longred.errors import ConfigError, where_paths_start
from longred.store.artifacts import canonical_digest, sha256_file

if TYPE_CHECKING:
    from longred.evaluation.suites import SuiteTask

SUFFIXES = (".yaml", ".yml")
_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
_INCLUDE = re.compile(r"^[\"']?include[\"']?:(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
_FUNCTION = re.compile(r"!function[ \t]+[\"']?([^\s\"',\]}]+)\.\w+")


def own_file(task: "SuiteTask") -> Path | None:
    """Return the YAML file that a task of a suite names instead of a task of lm-eval.

    Raises:
        ConfigError: it does not exist.
    """
    if not task.task.endswith(SUFFIXES):
        return None
    path = Path(task.task).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"{task.name}: task: {task.task} does not exist{where_paths_start(task.task)}"
        )
    return path.resolve()


def own_folder(task: "SuiteTask") -> Path | None:
    """Return the folder of task files that a suite adds to lm-eval's.

    Raises:
        ConfigError: it does not exist.
    """
    if not task.include_path:
        return None
    path = Path(task.include_path).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"{task.name}: include_path: {task.include_path} is no folder"
            f"{where_paths_start(task.include_path)}"
        )
    return path.resolve()


def own_digest(files: Iterable[Path | str]) -> str:
    """Return the digest of the contents and names of files, in the order of their paths.

    The order tells apart files of one name, without the paths, which a copied folder changes.
    """
    paths = sorted(Path(file) for file in files)
    return canonical_digest([[path.name, sha256_file(path)] for path in paths])


def local_data(values: Mapping[str, Any]) -> list[Path]:
    """Return the local files that a task reads by itself: `dataset_path`, `dataset_kwargs`.

    Args:
        values: its YAML values.
    """
    settings = values.get("dataset_kwargs")
    settings = settings if isinstance(settings, Mapping) else {}
    found: list[Path] = []
    for name in (values.get("dataset_path"), settings.get("data_dir")):
        folder = Path(str(name)).expanduser()
        # A builder of `datasets` is no folder, even if there is one of that name.
        if name and name not in _BUILDERS and folder.is_dir():
            found += [path for path in sorted(folder.rglob("*")) if path.is_file()]
    given: list[Any] = [settings.get("data_files")]
    while given:
        each = given.pop()
        if isinstance(each, str):
            found += [Path(path) for path in sorted(glob.glob(str(Path(each).expanduser())))]
        elif isinstance(each, Mapping):
            given += each.values()
        elif isinstance(each, list):
            given += each
    return [path for path in found if path.is_file()]


def own_digests(task: "SuiteTask") -> dict[str, str]:
    """Return the digests of all files that a task of the user may use, without asking lm-eval.

    Raises:
        ConfigError: its file or folder does not exist.
    """
    file, folder = own_file(task), own_folder(task)
    groups = {"task": set() if file is None else {*files_of(file)}}
    if folder is not None:
        paths = {path for pattern in ("*.yaml", "*.yml", "*.py") for path in folder.rglob(pattern)}
        # What they include often has no such extension, as `_template_yaml` in lm-eval.
        groups["include_path"] = paths.union(files_of(*(p for p in paths if p.suffix != ".py")))
    found = {name: own_digest(paths) for name, paths in groups.items() if paths}
    values = [_plain_values(path) for paths in groups.values() for path in paths]
    members = [member for each in (*values, task.overrides) for member in _members(each)]
    data = {str(path) for member in members for path in local_data(member)}
    return found | ({"data": own_digest(data)} if data else {})


def _members(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the values of a YAML file, and those that its groups give to single members."""
    yield values
    tasks = values.get("task")
    for member in tasks if isinstance(tasks, list) else ():
        if isinstance(member, Mapping):
            yield from _members(member)


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without the functions that it names."""


_PlainLoader.add_multi_constructor("!", lambda loader, tag, node: None)


def _plain_values(path: Path) -> Mapping[str, Any]:
    """Return the values of a YAML file; none of a file that lm-eval will refuse."""
    if path.suffix == ".py":
        return {}
    with contextlib.suppress(yaml.YAMLError, ValueError):
        values = _PlainLoader(path.read_text(encoding="utf-8")).get_single_data()
        return values if isinstance(values, Mapping) else {}
    return {}


def files_of(*paths: Path) -> list[Path]:
    """Return YAML files of tasks, those that they include, and Python files beside their helpers.

    Members of a group that have files of their own count too if they lie in its folder.
    """
    found: dict[Path, None] = {}
    waiting = [*paths]
    while waiting:
        current = waiting.pop()
        if current in found or not current.is_file():
            continue
        found[current] = None
        text = current.read_text(encoding="utf-8", errors="replace")
        waiting += _included(text, current.parent)
        for module in _FUNCTION.findall(text):
            helper = current.parent / f"{module.replace('.', '/')}.py"
            if helper.is_file():
                found |= dict.fromkeys(sorted(helper.parent.glob("*.py")))
        if re.search(r"^[\"']?group[\"']?:", text, re.MULTILINE):
            waiting += [each for each in yaml_files(current.parent) if each != current]
    return list(found)


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files below a folder that lm-eval takes for tasks, in order."""
    ignored = {"__pycache__", ".ipynb_checkpoints"}
    return sorted(path for path in folder.rglob("*.yaml") if ignored.isdisjoint(path.parts))


def _included(text: str, folder: Path) -> Iterator[Path]:
    """Yield the files that a task's YAML includes: one name, or a list of them."""
    for names in _INCLUDE.findall(text):
        for name in re.findall(r"[^\s\[\],\"']+", re.sub(r"(?m)#.*$|^[ \t]*-", "", names)):
            yield (folder / name).resolve()
