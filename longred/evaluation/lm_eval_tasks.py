"""Builds, freezes and runs tasks of lm-eval, one by one, with its own prompts, filters and metrics.

Hub data can be replaced by local files (`data_files` of a suite): then a task needs no network.
"""

import contextlib
import functools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetsError
from lm_eval.evaluator import evaluate
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from longred.errors import ConfigError, LongredError, MismatchError, NonFiniteLossError
from longred.evaluation.counting import encode
from longred.evaluation.lm import TransformersLM, new_tokens, request_tokens
from longred.evaluation.lm_eval_catalog import FORMATS, own_values
from longred.evaluation.lm_eval_classes import (
    MissingSplitError,
    adapted,
    check_overrides,
    suffix_of,
)
from longred.evaluation.lm_eval_errors import (
    PROMPT_ERRORS,
    building_error,
    check_answers,
    data_name,
    metric_error,
    name_of,
    prompt_error,
    scoring_error,
)
from longred.evaluation.lm_eval_finder import task_file
from longred.evaluation.metrics import local_metrics
from longred.evaluation.own_task_files import local_data, own_digest
from longred.evaluation.own_tasks import MAX_PROMPT_CHARACTERS
from longred.evaluation.results import Result, likeliest, num_truncated, summary, totals
from longred.evaluation.suites import nearest
from longred.evaluation.tasks import Row, Task
from longred.models.hub import HUB, transport_errors
from longred.store.artifacts import canonical_digest, sha256_file

FEWSHOT_SEED = 1234
"""lm-eval's default: the same few-shot examples as its command line draws."""
MAX_ANSWER_CHARACTERS = 2000

# The hub clients share no exception type.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    DatasetsError,
    *transport_errors(),
)

datasets.disable_progress_bars()


def build(settings: Mapping[str, Any]) -> Any:
    """Return a task object of lm-eval, with its data loaded.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.

    Raises:
        ConfigError: its data files cannot be read, their columns do not suit its wording, or its
            code ignores a setting.
        MismatchError: its own data do not suit its wording.
        PreflightError: its data, a metric or a package that it needs is not available.
    """
    if not settings["data_files"] and "local" not in settings["data_sha256"]:
        HUB.probe()
    try:
        with _seeded_generators(), local_metrics():
            task = _built(settings)
    except MissingSplitError as error:
        raise ConfigError(f"{name_of(settings)}: {error}") from error
    except LongredError:
        raise
    except (*PROMPT_ERRORS, *_LOADING_ERRORS) as error:
        raise building_error(settings, error) from error
    for metric, function in getattr(task, "_metric_fn_list", {}).items():
        # Only tasks that score answers with code of their own need no function here.
        if function is None and not callable(task.config.process_results):
            raise metric_error(settings, metric)
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    return task


def _built(settings: Mapping[str, Any]) -> Any:
    """Build a task with the changes of a suite and of its groups."""
    leaf = str(settings["task"])
    values = own_values(settings)
    if values is None:
        values = load_yaml(task_file(leaf))
    changes: Row = {"task": leaf, **settings["overrides"]}
    if "class" in values:
        builder = FORMATS.get(suffix_of(settings) or "")
        changes["class"] = adapted(values["class"], settings, builder)
    elif settings["data_files"]:
        changes["dataset_kwargs"] = {"data_files": dict(settings["data_files"])}
    if settings["num_fewshot"] is not None:
        changes["num_fewshot"] = settings["num_fewshot"]
    entry = Entry(name=leaf, kind=TaskIndex._kind_of(values), yaml_path=None, cfg=values)
    task: Any = TaskFactory().build(entry, overrides=changes, registry={})
    if "class" in values:
        # A class may ignore the values of its file.
        if settings["num_fewshot"] is not None:
            task.set_config(key="num_fewshot", value=settings["num_fewshot"])
        check_overrides(task, settings)
    return task


def freeze_leaf(settings: Mapping[str, Any], tokenizer: Any) -> tuple[list[Row], Row]:
    """Return the samples of a task, built without a chat template, and their entry in the index.

    The entry holds `max_tokens`, of the longest prompt with its answer, and `budget_tokens`, the
    largest generation budget.

    Raises:
        ConfigError: metric or filter do not exist, few-shot examples lack their data, a column that
            the prompt needs is missing from the data files, or an answer in them is no choice.
        MismatchError: the same in the task's own data.
        PreflightError: the data are not available.
    """
    task = build(settings)
    _check_score(task, settings)
    rows = _rows(task, settings)
    check_answers(settings, task)
    tokenise = functools.partial(encode, tokenizer)
    entry = {
        "max_tokens": max(request_tokens(request.args, tokenise) for request in task.instances),
        "budget_tokens": max(new_tokens(request.args) for request in task.instances),
    }
    return rows, entry


def _rows(task: Any, settings: Mapping[str, Any]) -> list[Row]:
    """Build a task's requests and return one row per document."""
    leaf = settings["task"]
    try:
        with _seeded_generators():
            # lm-eval draws examples while it builds prompts: reset the seed for every build.
            task.set_fewshot_seed(FEWSHOT_SEED)
            task.build_all_requests(limit=settings["limit"])
    except PROMPT_ERRORS as error:
        raise prompt_error(settings, error, task) from error
    except ValueError as error:
        reason = str(error)
        if "larger than population" in reason:
            reason = (
                f"its prompts hold {task.config.num_fewshot} examples, and there are fewer rows to "
                "draw them from; give more rows or a smaller num_fewshot"
            )
        raise ConfigError(f"{name_of(settings)}: {reason}; see {data_name(settings)}") from error
    requests: dict[int, list[Any]] = {}
    for request in task.instances:
        requests.setdefault(request.doc_id, []).append(request.args)
    return [
        {
            "id": f"{leaf}-{number}",
            "input": str(arguments[0][0]),
            "requests_sha256": canonical_digest(
                json.loads(json.dumps([list(each) for each in arguments], default=str))
            ),
        }
        for number, arguments in requests.items()
    ]


def _check_score(task: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a metric or filter that the task does not have."""
    leaf, metric, wanted = name_of(settings), settings["metric"], settings["filter"]
    metrics = list(_metrics(task))
    if metric not in metrics:
        raise ConfigError(f"{leaf}: has no metric {metric}; {nearest(metric, metrics)}")
    filters = [f.name for f in getattr(task, "_filters", [])] or ["none"]
    if wanted is None and len(filters) > 1:
        raise ConfigError(
            f"{leaf}: has the filters {', '.join(filters)}; choose one with `filter:`"
        )
    if wanted is not None and wanted not in filters:
        raise ConfigError(f"{leaf}: has no filter {wanted}; {nearest(wanted, filters)}")


def _metrics(task: Any) -> Iterator[str]:
    """Yield the names of a task's metrics; `pass_at_k` gives one value for each of its `k`."""
    settings = getattr(task, "_metric_fn_kwargs", {})
    for metric in task.aggregation():
        sizes = settings.get(metric, {}).get("k")
        if sizes is None:
            yield metric
        else:
            yield from (f"pass@{k}" for k in (sizes if isinstance(sizes, list) else [sizes]))


def run_lm_eval_task(lm: TransformersLM, task: Task) -> Result:
    """Evaluate a model on a task of lm-eval.

    Args:
        lm: the model.
        task: the task, whose frozen samples the prompts must match.

    Returns:
        Scores as `results.summary` returns them, and answers; no answers if the metric has no value
        per sample.

    Raises:
        ConfigError: code of the user fails on an answer.
        MismatchError: the data were changed, or no longer give the frozen samples.
        PreflightError: the data are no longer available.
    """
    settings = task.settings
    leaf = settings["task"]
    _check_data(settings)
    built = build(settings)
    if _rows(built, settings) != task.read_samples():
        raise MismatchError(
            f"{name_of(settings)}: its data no longer give the samples in {task.path}; freeze the "
            "samples again"
        )
    # Choices are scored as continuations, which an opened turn of the assistant would not be.
    in_chat = lm.is_chat and built.OUTPUT_TYPE == "generate_until"
    lm.reset(task.max_tokens, in_chat=in_chat)
    built.set_fewshot_seed(FEWSHOT_SEED)
    try:
        with _seeded_generators(), local_metrics():
            logged = evaluate(
                lm,
                {"tasks": {leaf: built}},
                limit=settings["limit"],
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=in_chat,
                fewshot_as_multiturn=True,
                confirm_run_unsafe_code=settings["allow_code"],
            )
    except Exception as error:  # code of a task may raise anything
        if (found := scoring_error(settings, error)) is None:
            raise
        raise found from error
    rows = logged["samples"][leaf]
    chosen = settings["filter"] or rows[0]["filter"]
    rows = [row for row in rows if row["filter"] == chosen]
    answers = [_answer(lm, built, settings, row) for row in rows]
    metric = f"{settings['metric']},{chosen}"
    value = logged["results"][leaf].get(metric)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise NonFiniteLossError(f"{leaf}: {metric} is {value}, which is not a score")
    score = settings["scale"] * float(value)
    parts = _parts(built, settings, rows)
    if parts is None or not math.isclose(sum(parts) / len(parts), score, abs_tol=1e-9):
        # The metric is no mean over samples, so none of them has a score.
        truncated = num_truncated(answers)
        return Result(totals(score, None, len(answers), settings["chance"], truncated))
    answers = [{**answer, "score": part} for answer, part in zip(answers, parts, strict=True)]
    return Result(summary(answers, settings["chance"]), answers)


def _check_data(settings: Mapping[str, Any]) -> None:
    """Refuse data that were changed since the samples were frozen, which hold no right answers.

    Raises:
        MismatchError: a data file was changed.
    """
    found = {
        split: sha256_file(Path(path))
        for split, path in settings["data_files"].items()
        if Path(path).is_file()
    }
    if "local" in settings["data_sha256"]:
        values = own_values(settings) or load_yaml(task_file(settings["task"]), resolve_func=False)
        found["local"] = own_digest(local_data({**values, **settings["overrides"]}))
    for split, digest in found.items():
        if digest != settings["data_sha256"][split]:
            where = settings["data_files"].get(split, "its local data")
            raise MismatchError(
                f"{name_of(settings)}: {where} changed since the samples were frozen; freeze the "
                "samples again"
            )


def _parts(
    built: Any, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[float] | None:
    """Return a metric's value of each sample alone, in percent; None if it has none.

    Some metrics, as those of squadv2, give numbers only for a list of samples, which may be one.
    """
    metric, scale = settings["metric"], settings["scale"]
    values: list[Any] = [row.get(metric) for row in rows]
    if all(isinstance(value, bool | int | float | np.number) for value in values):
        return [scale * float(value) for value in values]
    if None in values:
        return None
    try:
        aggregate = built.aggregation()[metric]
        with local_metrics():
            return [scale * float(aggregate([value])) for value in values]
    except (ArithmeticError, ValueError, TypeError, LookupError):
        return None


def _answer(
    lm: TransformersLM, built: Any, settings: Mapping[str, Any], row: Mapping[str, Any]
) -> Row:
    prompt = str(row["arguments"][0][0])
    answer: Row = {"id": f"{settings['task']}-{row['doc_id']}", **_texts(built, row)}
    if _is_unparsed(built, row):
        answer["unparsed"] = True
    answer |= lm.endings.get(prompt, {})
    if any(_is_truncated(lm, arguments) for arguments in row["arguments"]):
        answer["truncated"] = True
    if len(prompt) <= MAX_PROMPT_CHARACTERS:
        answer["prompt"] = prompt
    return answer


def _is_unparsed(built: Any, row: Mapping[str, Any]) -> bool:
    """Return whether a generated answer held nothing that the metric can read.

    That is an empty text, or what a filter of the task gives where it finds nothing.
    """
    if not isinstance(row["arguments"][0][-1], Mapping):
        return False
    found = row["filtered_resps"][0]
    texts = found if isinstance(found, list | tuple) else [found]
    return all(str(text).strip() in ("", *_fallbacks(built, row["filter"])) for text in texts)


def _fallbacks(built: Any, chosen: str) -> list[str]:
    """Return what the steps of a filter give for an answer that they find nothing in."""
    filters: list[Any] = next(
        (f.filters for f in getattr(built, "_filters", []) if f.name == chosen), []
    )
    # lm-eval keeps the steps as constructors with their settings.
    fallbacks = (getattr(step(), "fallback", None) for step in filters)
    texts = (
        each for found in fallbacks for each in (found if isinstance(found, list) else [found])
    )
    return [str(text) for text in texts if text is not None]


def _is_truncated(lm: TransformersLM, arguments: Sequence[Any]) -> bool:
    # The last token of a continuation is predicted, not read.
    num_unread = 0 if isinstance(arguments[-1], Mapping) else 1
    return bool(request_tokens(arguments, lm.tok_encode) - num_unread > lm.max_length)


def _texts(built: Any, row: Mapping[str, Any]) -> Row:
    """Return as text what was expected and what the model answered."""
    target, responses = row["target"], row["filtered_resps"]
    if built.OUTPUT_TYPE == "multiple_choice":
        column = 0 if built.multiple_input else 1
        choices = [str(arguments[column]) for arguments in row["arguments"]]
        wanted = target[0] if isinstance(target, list) and target else target
        is_index = isinstance(wanted, int) and 0 <= wanted < len(choices)
        return {
            "expected": choices[wanted] if is_index else str(target),
            "got": choices[likeliest(responses[: len(choices)])],
        }
    if built.OUTPUT_TYPE == "generate_until":
        return {
            "expected": target,
            "got": str(row["resps"][0][0])[:MAX_ANSWER_CHARACTERS],
            "extracted": str(responses[0])[:MAX_ANSWER_CHARACTERS],
        }
    return {"expected": str(target), "got": str(responses[0])[:MAX_ANSWER_CHARACTERS]}


@contextlib.contextmanager
def _seeded_generators() -> Iterator[None]:
    """Seed the global generators as lm-eval's command does, and restore them afterwards."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
