"""Errors of tasks of lm-eval, in the user's words: name in the suite, data files, columns."""

import contextlib
import importlib.metadata
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env

from longred.errors import ConfigError, LongredError, MismatchError, PreflightError, shorten
from longred.evaluation.lm_eval_answers import answer_field, problem_of, wrong_answers
from longred.evaluation.lm_eval_finder import needed_splits, task_file
from longred.models.hub import HUB, transport_errors

log = logging.getLogger(__name__)

PROMPT_ERRORS = (TemplateError, LookupError, TypeError, AttributeError, SyntaxError, AssertionError)
"""What lm-eval raises where the columns of the data do not suit a task's wording."""


def building_error(settings: Mapping[str, Any], error: Exception) -> LongredError:
    """Return the error to raise when lm-eval cannot build a task; records an unreachable hub.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.
        error: what lm-eval raised.
    """
    # lm-eval builds the first prompt in the task's constructor: only the traceback has the task.
    owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    task = next((owner for owner in owners if isinstance(owner, ConfigurableTask)), None)
    if task is None or not hasattr(task, "features"):
        if isinstance(error, PROMPT_ERRORS):
            return prompt_error(settings, error, task)
        return _loading_error(settings, error)
    if task.OUTPUT_TYPE == "multiple_choice":
        # What the choices or the answer lack is clearer than what lm-eval raised over it.
        with contextlib.suppress(*PROMPT_ERRORS, ValueError):
            document = task.task_docs[0]
            problem = problem_of(task, document)
            if problem is None and "" in task.doc_to_choice(document):
                problem = "one of its choices is empty"
            if problem is not None:
                return _document_error(settings, task, {0: problem})
    return prompt_error(settings, error, task)


def check_answers(settings: Mapping[str, Any], task: Any) -> None:
    """Refuse documents of a multiple-choice task whose right answer is none of their choices.

    In a benchmark's own data such documents are counted as wrong, as lm-eval does, with a warning;
    only if all are wrong, they do not suit this version of lm-eval.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.
        task: the task as lm-eval builds it.

    Raises:
        ConfigError: an answer in the data files of a suite is wrong; names file and line if they
            are known, otherwise task and document.
        MismatchError: all answers in the task's own data are wrong.
    """
    problems = wrong_answers(task, settings["limit"])
    if not problems:
        return
    checked = min(settings["limit"] or len(task.task_docs), len(task.task_docs))
    if settings["data_files"] or len(problems) == checked:
        raise _document_error(settings, task, problems)
    number, problem = next(iter(problems.items()))
    log.warning(
        "%s: document %d: %s; %d of %d documents like this count as wrong, as in lm-eval",
        name_of(settings),
        number + 1,
        problem,
        len(problems),
        checked,
    )


def prompt_error(settings: Mapping[str, Any], error: Exception, task: Any) -> LongredError:
    """Return the error to raise when columns do not suit a task's wording; names the columns.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.
        error: what lm-eval raised.
        task: the task, None if lm-eval had not begun to build it.
    """
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    fields = ("doc_to_text", "doc_to_target", "doc_to_choice")
    field = next((name for name in reversed(names) if name in fields), None)
    reason = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ValueError | SyntaxError) and (lacking := _lacking(task, field)):
        # In a list, jinja writes a column that is not there as `Undefined`.
        reason = " and ".join(f"'{column}' is undefined" for column in lacking)
    if field in settings["overrides"]:
        what = f"{field} of the suite"
    else:
        what = f"lm-eval's {field or 'prompt'} of {settings['task']}"
    found = "; ".join(_columns(settings, task)) or f"see {data_name(settings)}"
    message = f"{name_of(settings)}: {what} cannot be built: {reason}; {found}"
    if not settings["data_files"]:
        return MismatchError(shorten(message))
    return ConfigError(shorten(f"{message}; set {field or 'its wording'} in `overrides`"))


def _lacking(task: Any, field: str | None) -> list[str]:
    """Return the columns that the template of a field names and the first document lacks."""
    template = task.config.to_dict().get(field) if task is not None and field else None
    if not isinstance(template, str):
        return []
    with contextlib.suppress(*PROMPT_ERRORS, ValueError):
        named = find_undeclared_variables(env.parse(template))
        return sorted(named - set(task.task_docs[0]))
    return []


def name_of(settings: Mapping[str, Any]) -> str:
    """Return a task's name in the suite, as messages begin with."""
    # Samples that an earlier version froze have no name.
    return str(settings.get("name", settings["task"]))


def data_name(settings: Mapping[str, Any]) -> str:
    """Return where a task's data are."""
    files = ", ".join(map(_shown_path, settings["data_files"].values()))
    return f"its data files {files}" if files else "its data on the hub"


def import_error(settings: Mapping[str, Any], error: Exception) -> LongredError:
    """Return the error to raise when code of a task cannot be imported; says what to install.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.
        error: what the import raised.
    """
    name, reason = name_of(settings), _reason(error)
    if _is_from_evaluate(error):
        return _fetching_error(settings, f"a metric of its code ({reason})")
    # Tasks of lm-eval check versions of packages with assertions.
    is_of_lm_eval = "origin" not in settings
    if not is_of_lm_eval and isinstance(error, ImportError) and _imports_neighbour(error):
        return ConfigError(
            shorten(
                f"{name}: a Python file of the task imports another one beside it ({reason}), but "
                "lm-eval loads each by itself; put the code into one file, or their folder into "
                "PYTHONPATH"
            )
        )
    if isinstance(error, ImportError) or (is_of_lm_eval and isinstance(error, AssertionError)):
        return PreflightError(
            shorten(f"{name}: needs a package that is not installed ({reason}); {_advice(error)}")
        )
    if is_of_lm_eval:
        return PreflightError(
            shorten(
                f"{name}: lm-eval's code of the task does not work here ({reason}); leave the task "
                "out with evaluation.short.tasks"
            )
        )
    task = settings["origin"]["task"]
    return ConfigError(
        shorten(f"{name}: {task}: its Python code cannot be imported: {reason}; correct it")
    )


def scoring_error(settings: Mapping[str, Any], error: Exception) -> LongredError | None:
    """Return the error to raise when code of the user fails on an answer; None if it did not.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.
        error: what was raised while a model was evaluated.
    """
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        file = frame.f_code.co_filename
        # lm-eval names the modules of the user by their paths.
        if frame.f_globals.get("__name__") == str(Path(file).with_suffix("")):
            reason = f"{type(error).__name__}: {error}"
            return ConfigError(
                shorten(f"{name_of(settings)}: {file}:{line}: fails on an answer ({reason})")
            )
    return None


def _imports_neighbour(error: ImportError) -> bool:
    """Return whether a module was not found that is a file beside the one that imports it."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame.filename for frame in frames if not frame.filename.startswith("<")]
    module = (error.name or "").partition(".")[0]
    beside = Path(files[-1]).parent / f"{module}.py" if files else None
    return "relative import" in str(error) or (beside is not None and beside.is_file())


def metric_error(settings: Mapping[str, Any], metric: str) -> LongredError:
    """Return the error to raise when lm-eval has no function for a metric of a task."""
    return _fetching_error(settings, f"its metric {metric}")


def _fetching_error(settings: Mapping[str, Any], what: str) -> LongredError:
    return PreflightError(
        shorten(
            f"{name_of(settings)}: {what} is none of lm-eval's, and the package evaluate cannot "
            "fetch it from the hub; connect to the hub, or use a task with another metric"
        )
    )


def _is_from_evaluate(error: Exception) -> bool:
    """Return whether the package `evaluate` raised an error while it fetched a metric."""
    if isinstance(error, ImportError):
        return False
    frames = (
        frame.f_globals.get("__name__")
        for each in _chain(error)
        for frame, _ in traceback.walk_tb(each.__traceback__)
    )
    return any(name == "evaluate.loading" for name in frames)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _advice(error: Exception) -> str:
    """Return what to install for a failed import: an extra of lm-eval if one holds the package."""
    missing: set[str] = set()
    for named in _chain(error):
        # lm-eval's tasks often say it themselves.
        if extra := re.search(r"lm[_-]eval\[([\w-]+)\]", str(named)):
            return f"pip install 'lm_eval[{extra[1]}]'"
        missing.add(str(getattr(named, "name", None) or "").partition(".")[0].lower())
    requirements = importlib.metadata.requires("lm-eval") or ()
    pattern = re.compile(r"([\w-]+).*;\s*extra == [\"']([\w-]+)[\"']")
    for found in filter(None, map(pattern.match, requirements)):
        # The extra for development names half of what there is.
        if found[2] not in ("dev", "tasks") and found[1].replace("-", "_").lower() in missing:
            return f"pip install 'lm_eval[{found[2]}]'"
    return "install the package that has it"


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _loading_error(settings: Mapping[str, Any], error: Exception) -> LongredError:
    """Return the error to raise when a task's data or packages are not there."""
    name, reason = name_of(settings), _reason(error)
    if isinstance(error, ImportError):
        return import_error(settings, error)
    if isinstance(error, (ConnectionError, *transport_errors())):
        HUB.give_up(str(error))
    if settings["data_files"]:
        reason = _reason(error.__cause__ or error)
        return ConfigError(f"{name}: {data_name(settings)} cannot be used ({reason})")
    if "local" in settings["data_sha256"]:
        return MismatchError(f"{name}: its local data cannot be used ({reason}); see dataset_path")
    if "origin" in settings:
        return PreflightError(
            f"{name}: its data cannot be loaded ({reason}); see dataset_path and dataset_kwargs in "
            f"{settings['origin']['task']}, or give data_files in the suite"
        )
    return PreflightError(
        f"{name}: its data cannot be loaded ({type(error).__name__}: {reason}); connect to the "
        f"hub, or give local files in a suite of your own: {_own_suite(settings)} and "
        "evaluation.short.suite: /path/to/suite.yaml"
    )


def _own_suite(settings: Mapping[str, Any]) -> str:
    """Return the line of a suite that replaces a task's data by local files."""
    entry, _, member = name_of(settings).partition(" (")
    splits = {"test"}
    if "origin" not in settings:
        values = load_yaml(task_file(settings["task"]), resolve_func=False)
        needed = needed_splits(values, settings["num_fewshot"])
        splits = {"train", "validation"} if "class" in values else set(needed.values())
    # In a flow mapping of YAML, braces need quotes.
    form = '"/path/to/{{subset}}/{}.jsonl"' if member else "/path/to/{}.jsonl"
    files = ", ".join(f"{split}: {form.format(split)}" for split in sorted(splits))
    return (
        f"`{entry}: {{source: lm-eval, metric: {settings['metric']}, data_files: {{{files}}}, …}}`"
    )


def _document_error(
    settings: Mapping[str, Any], task: Any, problems: Mapping[int, str]
) -> LongredError:
    """Return the error for documents that no answer can be right for; shows the first one."""
    number, problem = next(iter(problems.items()))
    split = task.config.test_split or task.config.validation_split
    path = settings["data_files"].get(split, "")
    if path.endswith(".jsonl") and task.config.process_docs is None:
        place = f"{_shown_path(path)}:{number + 1}"
    else:
        # Code of the task may have dropped or reordered rows.
        place = f"{name_of(settings)}: document {number + 1}"
    others = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
    if settings["data_files"]:
        fields = f"{answer_field(task)} and doc_to_choice of {name_of(settings)} in the suite"
        return ConfigError(f"{place}: {problem}{others}; see {fields}")
    return MismatchError(
        f"{place}: {problem}{others}; its data on the hub do not suit this version of lm-eval, so "
        "leave the task out with evaluation.short.tasks"
    )


def _columns(settings: Mapping[str, Any], task: Any) -> Iterator[str]:
    """Yield the columns of each data file, or of the evaluated split of the task's own data."""
    loaded = getattr(task, "dataset", None)
    if loaded is None:
        return
    files = settings["data_files"]
    for split in files or [task.config.test_split or task.config.validation_split]:
        columns = getattr(loaded[split], "column_names", None)
        if columns:
            where = f"{_shown_path(files[split])} has" if files else "its data on the hub have"
            yield f"{where} the columns {', '.join(columns)}"


def _shown_path(path: str) -> str:
    """Return a path as short as possible: relative in the working directory."""
    with contextlib.suppress(ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return path
