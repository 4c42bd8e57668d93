"""Which short tasks belong together, as data: one YAML file a suite, capacity by capacity."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longred.errors import ConfigError

FOLDER = Path(__file__).parent
RESERVED = ("short", "ruler", "overall", "average")
"""Names that stand beside tasks and capacities in metric keys and score tables."""


class SuiteTask(BaseModel):
    """A short task and how its score is read.

    Attributes:
        name: its name in tables and metric keys.
        capacity: what it stands for: the short average is the mean over capacities of the mean
            over the tasks of each.
        source: `local` for a generator of `longred.evaluation.short.TASKS`, `lm-eval` for a task
            or a group of the harness, whose score is the mean over all of its samples.
        task: the task's name at its source; `name` if not given.
        metric: `choice` or `exact_match` for local tasks; a metric of the harness, without filter.
        filter: which of the harness's filters, where a task has several.
        num_fewshot: examples before a question; None leaves it to the harness.
        limit: samples at most (of each task of a group); None asks all.
        chance: percent that guessing scores.
        scale: what makes the harness's value a percentage.
        data_files: split → file that replaces the task's own data (JSON lines, JSON, Parquet or
            CSV); `{subset}` in a path stands for the name of the task's subset.
        overrides: further fields of the harness's task, as its own YAML has them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    capacity: str
    source: Literal["local", "lm-eval"] = "local"
    task: str = ""
    metric: str
    filter: str | None = None
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    chance: float = Field(0.0, ge=0.0, lt=100.0)
    scale: float = Field(100.0, gt=0.0)
    data_files: dict[str, str] = {}
    overrides: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self.model_dump(mode="json")


def load_suite(
    name_or_path: str, *, capacities: Sequence[str] = (), tasks: Sequence[str] = ()
) -> list[SuiteTask]:
    """Return the tasks of a suite, in the order of its file.

    Args:
        name_or_path: a packaged suite's name, or the path of a YAML file of the same form.
        capacities: keep these only; all if empty.
        tasks: keep these only; all if empty.

    Raises:
        ConfigError: there is no such suite, capacity or task, or the file is not a suite; the
            message offers the nearest names.
    """
    path = suite_path(name_or_path)
    suite = _read(path)
    _check_known("capacities", capacities, {task.capacity for task in suite}, path)
    _check_known("tasks", tasks, {task.name for task in suite}, path)
    return [
        task
        for task in suite
        if (not capacities or task.capacity in capacities) and (not tasks or task.name in tasks)
    ]


def suite_names() -> list[str]:
    """Return the names of the packaged suites."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def suite_path(name_or_path: str) -> Path:
    """Return the file of a suite.

    Raises:
        ConfigError: there is none.
    """
    if name_or_path in suite_names():
        return FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise ConfigError(
        f"evaluation.short.suite: {name_or_path} is unknown; "
        f"{nearest(name_or_path, suite_names())}, or give the path of a suite's YAML file"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return advice for a name that is not known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}" if len(names) <= 40 else "no known name is near"


def _check_known(key: str, wanted: Sequence[str], known: set[str], path: Path) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"evaluation.short.{key}: {name} is not in {path.name}; {nearest(name, known)}"
            )


def _read(path: Path) -> list[SuiteTask]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML ({error})") from error
    capacities = values.get("capacities") if isinstance(values, Mapping) else None
    if not isinstance(capacities, Mapping) or not set(values) <= {"capacities", "source"}:
        raise ConfigError(
            f"{path}: a suite holds `capacities:`, and `source:` for all of its tasks"
        )
    suite = []
    for capacity, tasks in capacities.items():
        if not isinstance(tasks, Mapping) or not tasks:
            raise ConfigError(f"{path}: capacities.{capacity}: holds no task: settings")
        for name, settings in tasks.items():
            key = f"{path}: capacities.{capacity}.{name}"
            suite.append(_task(key, values.get("source"), str(capacity), str(name), settings))
    names = [task.name for task in suite]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: {name} is there twice; give one of them another name")
    return suite


def _task(
    key: str, source: str | None, capacity: str, name: str, settings: Mapping[str, Any] | None
) -> SuiteTask:
    for word in (capacity, name):
        if word in RESERVED:
            raise ConfigError(f"{key}: {word} is the name of an average; choose another")
    common = {"name": name, "capacity": capacity, "task": name}
    if source is not None:
        common["source"] = source
    try:
        return SuiteTask.model_validate({**common, **(settings or {})})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([key, *(str(part) for part in first["loc"])])
        raise ConfigError(f"{place}: {first['msg']} (got {first['input']!r})") from None
    except TypeError as error:
        raise ConfigError(f"{key}: is not a mapping of settings ({error})") from None
