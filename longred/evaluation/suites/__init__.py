"""Suites: which short tasks to evaluate, one YAML file per suite, grouped by capacity."""

import difflib
import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longred.config import EvaluationConfig
from longred.config.keys import kind_of
from longred.errors import ConfigError, shorten, shown, where_paths_start
from longred.evaluation.own_task_files import SUFFIXES, own_file, own_folder

FOLDER = Path(__file__).parent
COMMON = ("source", "include_path")
"""Settings that a suite may give once for all of its tasks."""
NOT_LOCAL = ("data_files", "filter", "limit", "num_fewshot", "overrides", "scale")
"""Settings that local tasks do not take."""
SUBSET = "{subset}"
"""Stands in a path of `data_files` for the name of the task's subset."""
HUB_PREFIX = "hf://datasets/"
"""Beginning of the place of a file on the hub: `hf://datasets/owner/name@commit/file`."""
RESERVED = ("short", "ruler", "overall", "average")
"""Names that metric keys and score tables use beside those of tasks and capacities."""


class SuiteTask(BaseModel):
    """A short task of a suite, and how its score is read.

    Attributes:
        name: its name in tables and metric keys.
        capacity: its group: the short average is the mean over capacities of the mean over the
            tasks of each.
        source: `local` for a generator of `longred.evaluation.short.TASKS`, `lm-eval` for a task or
            group of lm-eval, whose score is the mean over all of its samples, `published` for a
            benchmark of `longred.evaluation.published.BENCHMARKS`.
        task: the task's name at its source; default `name`. For lm-eval also the path of a YAML
            file in its form: a task of the user, with functions in Python files beside it.
        include_path: folder with YAML files of the user's own tasks, groups and tags, which `task`
            may name; they come before those of lm-eval.
        metric: `choice` or `exact_match` for local tasks; a metric of lm-eval, without filter; the
            metric of a published benchmark.
        filter: the filter of lm-eval, if the task has several.
        num_fewshot: examples before each prompt; None for lm-eval's own number.
        limit: maximum number of samples, of each task of a group; None for all.
        chance: score of guessing, in percent.
        scale: factor that converts lm-eval's value to percent.
        data_files: split -> file that replaces the task's own data (JSON Lines, JSON, Parquet,
            Arrow or CSV); `{subset}` in a path is replaced by the name of the task's subset, so
            that one line serves all members, e.g. `{test: "/data/mmlu/{subset}/test.jsonl"}`.
            Relative paths start in the folder where the command runs. `{folder}` is replaced by
            `evaluation.short.data_folder`. Files of published benchmarks may be on the hub.
        overrides: further values of the task's YAML file in lm-eval; settings of a published
            benchmark.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    capacity: str
    source: Literal["local", "lm-eval", "published"] = "local"
    task: str = ""
    include_path: str = ""
    metric: str
    filter: str | None = None
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    chance: float = Field(0.0, ge=0.0, lt=100.0)
    scale: float = Field(100.0, gt=0.0)
    data_files: dict[str, str] = {}
    overrides: dict[str, Any] = {}


def suite_of(config: EvaluationConfig) -> list[SuiteTask]:
    """Return the short tasks of a configuration, with paths in its folder of data files.

    Raises:
        ConfigError: suite, capacity or task are unknown, or their files are in no folder.
    """
    short = config.short
    suite = load_suite(short.suite, capacities=short.capacities, tasks=short.tasks)
    return [_in_folder(task, short.suite, short.data_folder) for task in suite]


def _in_folder(task: SuiteTask, suite: str, folder: str | None) -> SuiteTask:
    """Return a task whose data files are in a folder."""
    if not any("{folder}" in path for path in task.data_files.values()):
        return task
    if folder is None:
        raise ConfigError(
            f"evaluation.short.data_folder: is required: {task.name} of suite {suite} reads files "
            "that you download; the first lines of the suite's file say from where "
            f"({suite_path(suite)})"
        )
    files = {split: path.replace("{folder}", folder) for split, path in task.data_files.items()}
    return task.model_copy(update={"data_files": files})


def load_suite(
    name_or_path: str, *, capacities: Sequence[str] = (), tasks: Sequence[str] = ()
) -> list[SuiteTask]:
    """Return the tasks of a suite, in the order of its file.

    Args:
        name_or_path: name of a packaged suite, or path of a YAML file of the same form.
        capacities: select these; all if empty.
        tasks: select these; all if empty.

    Raises:
        ConfigError: suite, capacity or task are unknown (suggests the nearest names), no task is in
            a selected capacity, or the file is not a suite.
    """
    path = suite_path(name_or_path)
    suite = _read(path)
    known_capacities, known_tasks = {task.capacity for task in suite}, {task.name for task in suite}
    for key, wanted, known in (
        ("capacities", capacities, known_capacities),
        ("tasks", tasks, known_tasks),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(
                    f"evaluation.short.{key}: {name} is not in {path.name}; {nearest(name, known)}"
                )
    chosen = [
        task
        for task in suite
        if (not capacities or task.capacity in capacities) and (not tasks or task.name in tasks)
    ]
    if not chosen:
        raise ConfigError(
            f"evaluation.short.tasks: {', '.join(tasks)} of {path.name} are not in "
            f"evaluation.short.capacities ({', '.join(capacities)}); leave one of the two out"
        )
    return chosen


def check_data_files(suite: Iterable[SuiteTask]) -> None:
    """Refuse missing files, before anything slow; needs no lm-eval, so it does not read them.

    Raises:
        ConfigError: a data file, a task's own YAML file or their folder does not exist.
    """
    for task in suite:
        own_file(task)
        own_folder(task)
        for split, path in task.data_files.items():
            if not path.startswith(HUB_PREFIX) and not data_paths(path):
                raise missing_file(task.name, split, path)


def data_paths(path: str) -> list[Path]:
    """Return the files that a path in `data_files` stands for, of any subset."""
    return sorted(each for each in _places(path) if each.is_file())


def _places(path: str) -> list[Path]:
    """Return the files and folders that a path in `data_files` stands for, of any subset."""
    # Only lm-eval's files say what the subsets are called.
    parts = (glob.escape(part) for part in str(Path(path).expanduser()).split(SUBSET))
    return [Path(place) for place in glob.glob("*".join(parts))]


def missing_file(name: str, split: str, path: str) -> ConfigError:
    """Return the error for a data file of a task that does not exist, or is a folder."""
    key = f"{name}: data_files.{split}: {path}"
    if any(place.is_dir() for place in _places(path)):
        return ConfigError(f"{key} is a folder; name one file (patterns with * are not expanded)")
    others = [word for word in re.findall(r"\{\w*\}", path) if word != SUBSET]
    braces = f"; {others[0]} is not replaced, only {SUBSET} is" if others else ""
    return ConfigError(f"{key} does not exist{where_paths_start(path)}{braces}")


def suite_names() -> list[str]:
    """Return the names of the packaged suites."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def suite_path(name_or_path: str) -> Path:
    """Return the file of a suite.

    Raises:
        ConfigError: the suite is unknown.
    """
    if name_or_path in suite_names():
        return FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    is_file_name = path.suffix in (".yaml", ".yml")
    what = "does not exist" if is_file_name else "is unknown"
    raise ConfigError(
        f"evaluation.short.suite: {shown(name_or_path, 200)} {what}; "
        f"{nearest(name_or_path, suite_names())}, or give the path of a suite's YAML file"
        f"{where_paths_start(name_or_path)}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}" if len(names) <= 40 else "no known name is near"


def _read(path: Path) -> list[SuiteTask]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML lets the errors of its constructors through, for dates such as 2001-99-99.
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or error
        raise ConfigError(shorten(f"{place}: is not valid YAML ({problem})")) from error
    capacities = values.get("capacities") if isinstance(values, Mapping) else None
    if not isinstance(capacities, Mapping) or not set(values) <= {"capacities", *COMMON}:
        raise ConfigError(
            f"{path}: a suite holds `capacities:`, and `source:` and `include_path:` for all of "
            "its tasks"
        )
    common = {key: values[key] for key in COMMON if values.get(key) is not None}
    suite: dict[str, SuiteTask] = {}
    for capacity, tasks in capacities.items():
        if not isinstance(tasks, Mapping) or not tasks:
            raise ConfigError(f"{path}: capacities.{capacity}: holds no task: settings")
        for name, settings in tasks.items():
            key = f"{path}: capacities.{capacity}.{name}"
            task = _task(key, common, str(capacity), str(name), settings)
            if task.name in suite:
                raise ConfigError(f"{path}: {task.name} is there twice; rename one of them")
            suite[task.name] = task
    return list(suite.values())


def _task(
    key: str,
    common: Mapping[str, Any],
    capacity: str,
    name: str,
    settings: Mapping[str, Any] | None,
) -> SuiteTask:
    for word in (capacity, name):
        if word in RESERVED:
            raise ConfigError(f"{key}: {word} is the name of an average; choose another")
    names = {"name": name, "capacity": capacity, "task": name}
    try:
        task = SuiteTask.model_validate({**names, **common, **(settings or {})})
    except ValidationError as error:
        # A key that is written wrong lacks under its right name too.
        first = min(error.errors(), key=lambda each: each["type"] == "missing")
        field = ".".join([key, *(str(part) for part in first["loc"])])
        kind = kind_of(SuiteTask, first["loc"])
        if kind is None:
            advice = nearest(str(first["loc"][-1]), SuiteTask.model_fields)
            raise ConfigError(f"{field}: unknown key; {advice}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{field}: is required: {kind.words()}") from None
        message = f"{field}: must be {kind.words()}, got {shown(first['input'])}"
        raise ConfigError(shorten(message)) from None
    except TypeError as error:
        raise ConfigError(f"{key}: is not a mapping of settings ({error})") from None
    if task.source == "local":
        _check_local(key, task)
    return task


def _check_local(key: str, task: SuiteTask) -> None:
    """Refuse a local task that has no generator, or settings that would change nothing."""
    from longred.evaluation.short import METRICS

    if task.task.endswith(SUFFIXES):
        raise ConfigError(f"{key}.task: {task.task} is a task of lm-eval: set source: lm-eval")
    if task.task not in METRICS:
        raise ConfigError(
            f"{key}.task: {task.task} is no local task ({', '.join(METRICS)}); for one of lm-eval "
            "set source: lm-eval, for a published benchmark source: published"
        )
    if task.metric != METRICS[task.task]:
        raise ConfigError(
            f"{key}.metric: is {METRICS[task.task]} for {task.task}, got {task.metric}"
        )
    fields = SuiteTask.model_fields
    unused = [name for name in NOT_LOCAL if getattr(task, name) != fields[name].default]
    if unused:
        raise ConfigError(
            f"{key}.{unused[0]}: changes nothing in a local task, whose samples "
            "evaluation.short.num_samples counts; leave it out"
        )
