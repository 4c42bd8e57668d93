"""Tasks of lm-eval: found without its scan, fed with local files, frozen and asked one by one.

The harness's prompts, filters and metrics stay as they are. What it would read from the hub can be
replaced by files (`data_files` of a suite), so that the tasks run without a network.
"""

import contextlib
import functools
import importlib.metadata
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import httpx
import lm_eval.api.task
import numpy as np
import torch
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from longred.errors import ConfigError, MismatchError, NonFiniteLossError, PreflightError
from longred.evaluation.benchmarks import MAX_PROMPT_CHARACTERS
from longred.evaluation.examinee import Examinee
from longred.evaluation.harness_index import NAMES, find_leaves
from longred.evaluation.local_data import override
from longred.evaluation.prompts import count_tokens
from longred.evaluation.scoring import summary
from longred.evaluation.suites import SuiteTask, nearest
from longred.evaluation.units import Unit
from longred.models.hub import HUB
from longred.store.artifacts import canonical_digest, sha256_file

FEWSHOT_SEED = 1234
"""The harness's own default: the same examples as its command line shows."""
MAX_ANSWER_CHARACTERS = 2000
DEFAULT_NEW_TOKENS = 256

Row = dict[str, Any]


class _QuietBar(tqdm):  # type: ignore[misc]
    """The harness's bar over contexts, which it cannot be told to leave out."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "disable": True})


lm_eval.api.task.tqdm = _QuietBar
datasets.disable_progress_bars()


def version() -> str:
    """Return the harness's version."""
    return importlib.metadata.version("lm-eval")


def leaf_settings(entry: SuiteTask, *, limit: int | None, allow_code: bool) -> dict[str, Row]:
    """Return what the harness is told for a task, or for each task of a group.

    Args:
        entry: the task of a suite.
        limit: samples at most, beside the entry's own limit.
        allow_code: whether tasks may run what a model writes.

    Raises:
        ConfigError: the harness has no such task, or data files do not suit it.
        MismatchError: a data file is missing or malformed.
        PreflightError: the task runs code and may not.
    """
    limits = [n for n in (limit, entry.limit) if n is not None]
    found = {}
    for leaf, values in find_leaves(entry.task).items():
        if values.get("unsafe_code") and not allow_code:
            raise PreflightError(
                f"{leaf}: runs code that the model writes; set "
                "evaluation.short.allow_code_execution: true where that is safe"
            )
        files, changes = override(entry, values)
        found[leaf] = {
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
            "allow_code": bool(values.get("unsafe_code")),
            "lm_eval": version(),
        }
    return found


def build(settings: Mapping[str, Any]) -> Any:
    """Return a task of the harness, with its data.

    Raises:
        MismatchError: its data files do not hold what the harness can read.
        PreflightError: its data or a package that it needs cannot be had.
    """
    leaf = str(settings["task"])
    changes: Row = {"task": leaf, **settings["overrides"]}
    if settings["num_fewshot"] is not None:
        changes["num_fewshot"] = settings["num_fewshot"]
    if settings["data_files"]:
        changes["dataset_kwargs"] = {"data_files": dict(settings["data_files"])}
    if not settings["data_files"]:
        HUB.probe()
    try:
        with _own_generators():
            # A group of one: only a group's member may change what the task's own file says.
            group = {"group": "longred", "task": [changes]}
            task = _manager(NAMES.folder(leaf)).load([group])["tasks"][leaf]
    except _PROMPT_ERRORS as error:
        raise _no_prompts(settings, error) from error
    except _LOADING_ERRORS as error:
        if isinstance(error, ConnectionError | httpx.HTTPError):
            HUB.give_up(str(error))
        if settings["data_files"] and not isinstance(error, ImportError):
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise MismatchError(f"{leaf}: {_files(settings)} cannot be used ({reason})") from error
        raise PreflightError(_unavailable(leaf, error)) from error
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    return task


# What a hub client raises has no common type.
_LOADING_ERRORS = (OSError, ValueError, ImportError, RuntimeError, DatasetsError, httpx.HTTPError)
_PROMPT_ERRORS = (TemplateError, KeyError, IndexError, TypeError)


@functools.cache
def _manager(folder: Path) -> TaskManager:
    return TaskManager(include_defaults=False, include_path=[folder])


def _unavailable(leaf: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, ImportError):
        extra = "longbench" if leaf.startswith("longbench") else "math"
        return (
            f"{leaf}: needs a package that is not installed ({reason}); "
            f"pip install 'lm_eval[{extra}]'"
        )
    return (
        f"{leaf}: its data cannot be had ({type(error).__name__}: {reason}); give local files in a "
        f"suite of your own: `{leaf}: {{source: lm-eval, data_files: {{test: /path/to/file.jsonl}}"
        ", …}`, and evaluation.short.suite: /path/to/suite.yaml"
    )


def freeze_leaf(settings: Mapping[str, Any], tokenizer: Any) -> tuple[list[Row], Row]:
    """Return a task's questions as they are asked without a chat, and what an index says of them.

    The index says `max_tokens`, of the longest question with its answer, and `budget_tokens`, the
    most that is generated.

    Raises:
        ConfigError: metric or filter do not exist, or examples lack their data.
        MismatchError: a field that the prompt needs is missing from the data.
        PreflightError: the data cannot be had.
    """
    task = build(settings)
    _check_score(task, settings)
    rows = _rows(task, settings)
    longest = max(_request_tokens(i, tokenizer) for i in task.instances)
    budget = max(_budget(i.args[1] if len(i.args) > 1 else "") for i in task.instances)
    return rows, {"max_tokens": longest, "budget_tokens": budget}


def _budget(second: Any) -> int:
    """Return the tokens that a request may generate; none where it is a likelihood."""
    return int(second.get("max_gen_toks", DEFAULT_NEW_TOKENS)) if isinstance(second, dict) else 0


def _rows(task: Any, settings: Mapping[str, Any]) -> list[Row]:
    """Build a task's requests and return one row for each document."""
    leaf = settings["task"]
    try:
        with _own_generators():
            # Examples are drawn while prompts are made: every making begins anew.
            task.set_fewshot_seed(FEWSHOT_SEED)
            task.build_all_requests(limit=settings["limit"])
    except _PROMPT_ERRORS as error:
        raise _no_prompts(settings, error) from error
    except ValueError as error:
        raise ConfigError(f"{leaf}: {error}; see {_files(settings)}") from error
    by_document: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    return [
        {
            "id": f"{leaf}-{number}",
            "input": str(instances[0].args[0]),
            "requests_sha256": canonical_digest([_plain(i.args) for i in instances]),
        }
        for number, instances in by_document.items()
    ]


def _no_prompts(settings: Mapping[str, Any], error: Exception) -> MismatchError:
    return MismatchError(
        f"{settings['task']}: the harness cannot make its prompts from these data "
        f"({type(error).__name__}: {error}); see {_files(settings)}"
    )


def _files(settings: Mapping[str, Any]) -> str:
    files = ", ".join(settings["data_files"].values())
    return f"its data files {files}" if files else "its data on the hub"


def _plain(arguments: Sequence[Any]) -> list[Any]:
    return [json.loads(json.dumps(argument, default=str)) for argument in arguments]


def _request_tokens(instance: Any, tokenizer: Any) -> int:
    context = str(instance.args[0])
    second = instance.args[1] if len(instance.args) > 1 else ""
    if isinstance(second, Mapping):
        return count_tokens(tokenizer, context) + _budget(second)
    return count_tokens(tokenizer, context + str(second))


def _check_score(task: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a metric or a filter that the task does not have, before anything is asked."""
    leaf, metric = settings["task"], settings["metric"]
    metrics = list(task.aggregation())
    if metric not in metrics:
        raise ConfigError(f"{leaf}: has no metric {metric}; {nearest(metric, metrics)}")
    filters = [f.name for f in getattr(task, "_filters", [])] or ["none"]
    wanted = settings["filter"]
    if wanted is None and len(filters) > 1:
        raise ConfigError(f"{leaf}: has the filters {', '.join(filters)}; say which with filter:")
    if wanted is not None and wanted not in filters:
        raise ConfigError(f"{leaf}: has no filter {wanted}; {nearest(wanted, filters)}")


def ask_harness(lm: Examinee, unit: Unit) -> tuple[Row, list[Row]]:
    """Ask a model a task of the harness.

    Args:
        lm: the model.
        unit: the task; its frozen samples say what must be asked.

    Returns:
        The result as `scoring.summary` gives it, and the answers; where a metric has no value for
        a single answer, answers hold no score and are not returned.

    Raises:
        MismatchError: the data now give other questions than were frozen.
        PreflightError: the data cannot be had any more.
    """
    settings = unit.settings
    task = build(settings)
    if _rows(task, settings) != unit.read_samples():
        raise MismatchError(
            f"{settings['task']}: its data now give other questions than those in {unit.path}; "
            "freeze the samples again"
        )
    lm.limit(unit.max_tokens, in_chat=lm.is_chat)
    task.set_fewshot_seed(FEWSHOT_SEED)
    with _own_generators():
        results = evaluate(
            lm,
            {"tasks": {settings["task"]: task}},
            limit=settings["limit"],
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=lm.is_chat,
            fewshot_as_multiturn=True,
            confirm_run_unsafe_code=settings["allow_code"],
        )
    return _scored(lm, task, settings, results)


def _scored(
    lm: Examinee, task: Any, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> tuple[Row, list[Row]]:
    leaf, metric = settings["task"], settings["metric"]
    rows = results["samples"][leaf]
    chosen = settings["filter"] or rows[0]["filter"]
    rows = [row for row in rows if row["filter"] == chosen]
    answers = [_answer(lm, task, leaf, row, metric, settings["scale"]) for row in rows]
    if all("score" in answer for answer in answers):
        return summary(answers, settings["chance"]), answers
    value = results["results"][leaf].get(f"{metric},{chosen}")
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise NonFiniteLossError(f"{leaf}: {metric},{chosen} is {value}, which is no score")
    return {
        "score": settings["scale"] * float(value),
        "stderr": None,
        "num_samples": len(rows),
        "chance": settings["chance"],
        "truncated": sum(bool(answer.get("truncated")) for answer in answers),
    }, []


def _answer(
    lm: Examinee, task: Any, leaf: str, row: Mapping[str, Any], metric: str, scale: float
) -> Row:
    context = str(row["arguments"][0][0])
    answer: Row = {"id": f"{leaf}-{row['doc_id']}", **_said(task, row)}
    value = row.get(metric)
    if isinstance(value, bool | int | float | np.number):
        answer["score"] = scale * float(value)
    ending = lm.endings.get(context)
    if ending is not None:
        answer |= {"ended": ending.reason, "output_tokens": ending.num_tokens}
    size = max(_request_tokens_of(arguments, lm) for arguments in row["arguments"])
    if size > lm.max_length:
        answer["truncated"] = True
    if len(context) <= MAX_PROMPT_CHARACTERS:
        answer["prompt"] = context
    return answer


def _request_tokens_of(arguments: Sequence[Any], lm: Examinee) -> int:
    second = arguments[1] if len(arguments) > 1 else ""
    if isinstance(second, Mapping):
        room = int(second.get("max_gen_toks", lm.max_gen_toks))
        return len(lm.tok_encode(str(arguments[0]))) + room
    # The last token of a continuation is predicted and not read.
    return len(lm.tok_encode(str(arguments[0]) + str(second))) - 1


def _said(task: Any, row: Mapping[str, Any]) -> Row:
    """Return what was expected and what the model said, as text."""
    target, answers = row["target"], row["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = [str(arguments[1]) for arguments in row["arguments"]]
        if task.multiple_input:
            choices = [str(arguments[0]) for arguments in row["arguments"]]
        likelihoods = [float(answer[0]) for answer in answers][: len(choices)]
        said = choices[likelihoods.index(max(likelihoods))]
        wanted = target[0] if isinstance(target, list) and target else target
        is_number = isinstance(wanted, int) and 0 <= wanted < len(choices)
        return {"expected": choices[wanted] if is_number else str(target), "got": said}
    if task.OUTPUT_TYPE == "generate_until":
        raw = str(row["resps"][0][0])[:MAX_ANSWER_CHARACTERS]
        return {
            "expected": target,
            "got": raw,
            "extracted": str(answers[0])[:MAX_ANSWER_CHARACTERS],
        }
    return {"expected": str(target), "got": str(answers[0])}


@contextlib.contextmanager
def _own_generators() -> Iterator[None]:
    """Seed the global generators as the harness's command does, and put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
