"""Published benchmarks that are read from their own files: suites with `source: published`.

`BENCHMARKS` is the table: name → reader of rows, metric and settings. `freeze` turns a suite's task
into samples: the reader yields them in the order in which they are drawn, and those that do not fit
the largest window with their answer are left out and counted, never truncated.

File by file: `files` (rows with places for messages), `reading` (what readers get), `helmet`,
`helmet_labels`, `conversations` (MRCR, GraphWalks), `nolima`, `longbench_pro` (the readers); the
metrics are `longred.evaluation.metrics.published`. Each reader names its source and what differs
from it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from longred.errors import ConfigError, PreflightError
from longred.evaluation.counting import count_tokens
from longred.evaluation.prompts import messages, plain_prompt
from longred.evaluation.published.conversations import read_graphwalks, read_mrcr
from longred.evaluation.published.files import check_file, local_file
from longred.evaluation.published.helmet import (
    MAX_POPULARITY,
    read_json_kv,
    read_needles,
    read_questions,
    read_ranking,
)
from longred.evaluation.published.helmet_labels import read_labels
from longred.evaluation.published.longbench_pro import read_longbench_pro
from longred.evaluation.published.nolima import read_nolima
from longred.evaluation.published.reading import Reading, split_of
from longred.evaluation.suites import SuiteTask, nearest
from longred.evaluation.tasks import Row

READER_VERSION = 1
"""Part of the identity of every sample file; increase it when the same files give other samples."""


class Setting(NamedTuple):
    """A value that `overrides` of a suite's task may set.

    Attributes:
        kind: its type.
        default: its value if a suite says nothing.
        is_required: whether a suite must say.
    """

    kind: type
    default: Any = None
    is_required: bool = False


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        read: yields the samples of a task, in the order in which they are drawn.
        metric: name of its metric in `longred.evaluation.metrics.published`.
        splits: what its files are: each is required, and `optional` ones may be missing.
        shots: examples before each question if a suite says nothing; None where there are none,
            0 where a suite must say.
        settings: what `overrides` of a suite's task may set.
        draws: whether its own rule says which samples a limit selects; otherwise the first ones
            that fit.
    """

    read: Callable[[Reading], Iterator[Row]]
    metric: str
    splits: tuple[str, ...] = ("test",)
    optional: tuple[str, ...] = ()
    shots: int | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    draws: bool = False


def _needles(needles: str, budget: int) -> Benchmark:
    settings = {"needles": Setting(str, needles), "max_new_tokens": Setting(int, budget)}
    return Benchmark(read=read_needles, metric="helmet_recall", settings=settings, draws=True)


def _questions(max_popularity: int | None = None) -> Benchmark:
    return Benchmark(
        read=read_questions,
        metric="helmet_substring",
        splits=("test", "demos"),
        shots=2,
        settings={"max_popularity": Setting(int, max_popularity)},
        draws=True,
    )


def _labels(label_column: str, num_labels: int, *, has_test: bool = True) -> Benchmark:
    return Benchmark(
        read=read_labels,
        metric="helmet_label",
        splits=("train", "test") if has_test else ("train",),
        optional=() if has_test else ("test",),
        shots=0,
        settings={
            "label_column": Setting(str, label_column),
            "num_labels": Setting(int, num_labels),
        },
        draws=True,
    )


BENCHMARKS: dict[str, Benchmark] = {
    "helmet_json_kv": Benchmark(read=read_json_kv, metric="helmet_substring", shots=2, draws=True),
    "helmet_niah_mk_2": _needles("one", 50),
    "helmet_niah_mk_3": _needles("one", 100),
    "helmet_niah_mv": _needles("many", 50),
    "helmet_nq": _questions(),
    "helmet_triviaqa": _questions(),
    "helmet_hotpotqa": _questions(),
    "helmet_popqa": _questions(MAX_POPULARITY),
    "helmet_msmarco": Benchmark(
        read=read_ranking,
        metric="helmet_ranking",
        splits=("test", "demos"),
        shots=2,
        draws=True,
    ),
    "helmet_trec_coarse": _labels("coarse_label", 6),
    "helmet_trec_fine": _labels("fine_label", 50),
    "helmet_banking77": _labels("label", 77),
    "helmet_clinic150": _labels("intent", 151),
    "helmet_nlu": _labels("label", 68, has_test=False),
    "mrcr": Benchmark(read=read_mrcr, metric="mrcr", settings={"num_needles": Setting(int)}),
    "graphwalks": Benchmark(
        read=read_graphwalks,
        metric="graphwalks",
        settings={"problem_type": Setting(str), "extra_tokens": Setting(int, 256)},
    ),
    "nolima": Benchmark(
        read=read_nolima,
        metric="contains",
        splits=("test", "haystack"),
        settings={
            "length": Setting(int, is_required=True),
            "kind": Setting(str),
            "template": Setting(str),
            "max_new_tokens": Setting(int, 192),
        },
    ),
    "longbench_pro": Benchmark(
        read=read_longbench_pro,
        metric="longbench_pro",
        settings={
            "group": Setting(str, is_required=True),
            "language": Setting(str),
            "token_length": Setting(str),
        },
    ),
}
"""Name → benchmark; the names are the tasks of suites with `source: published`."""

MAX_CHARACTERS = 10
"""A prompt with more characters than this for each token of a limit is beyond it, untokenised."""

_LIMITS = {"min_tokens": Setting(int, 0), "max_tokens": Setting(int)}
"""Settings of every benchmark: samples with fewer or more tokens, answer included, take no part."""


def settings_of(task: SuiteTask) -> dict[str, Any]:
    """Return every setting of a suite's task.

    Raises:
        ConfigError: the benchmark, a setting or a value is unknown, or one is missing.
    """
    if task.task not in BENCHMARKS:
        raise ConfigError(
            f"{task.name}: task: {task.task} is no published benchmark; "
            f"{nearest(task.task, BENCHMARKS)}"
        )
    benchmark = BENCHMARKS[task.task]
    if task.metric != benchmark.metric:
        raise ConfigError(
            f"{task.name}: metric: is {benchmark.metric} for {task.task}, got {task.metric}"
        )
    if task.filter is not None:
        raise ConfigError(f"{task.name}: filter: {task.task} has none; leave it out")
    known = {**_LIMITS, **benchmark.settings}
    for key, value in task.overrides.items():
        if key not in known:
            raise ConfigError(f"{task.name}: overrides.{key}: is unknown; {nearest(key, known)}")
        if type(value) is not known[key].kind:
            kind = "a whole number" if known[key].kind is int else "text"
            raise ConfigError(f"{task.name}: overrides.{key}: must be {kind}, got {value!r}")
    settings = {key: task.overrides.get(key, setting.default) for key, setting in known.items()}
    for key, setting in known.items():
        if setting.is_required and key not in task.overrides:
            raise ConfigError(f"{task.name}: overrides.{key}: is required")
    shots = benchmark.shots if task.num_fewshot is None else task.num_fewshot
    if benchmark.shots is None and task.num_fewshot is not None:
        raise ConfigError(f"{task.name}: num_fewshot: {task.task} takes no examples; leave it out")
    if benchmark.shots == 0 and not shots:
        raise ConfigError(f"{task.name}: num_fewshot: is required: the number of labelled texts")
    return {**settings, "shots": shots or 0}


def check_task(task: SuiteTask) -> None:
    """Check the settings and files of a suite's task; reads no file and downloads nothing.

    Raises:
        ConfigError: see `settings_of`; or a file is missing, or is of no split.
    """
    settings_of(task)
    benchmark = BENCHMARKS[task.task]
    given = {split_of(name) for name in task.data_files}
    for name, path in task.data_files.items():
        if split_of(name) not in (*benchmark.splits, *benchmark.optional):
            raise ConfigError(
                f"{task.name}: data_files.{name}: is unknown; "
                f"{nearest(name, (*benchmark.splits, *benchmark.optional))}"
            )
        check_file(task.name, name, path)
    for split in benchmark.splits:
        if split not in given:
            raise ConfigError(f"{task.name}: data_files lacks `{split}: /path/to/file`")


def freeze(
    task: SuiteTask, tokenizer: Any, *, window: int, limit: int | None, seed: int
) -> tuple[list[Row], Row]:
    """Return the samples of a suite's task that fit a window, and their entry in the index.

    Args:
        task: a task with `source: published`.
        tokenizer: a fast tokenizer.
        window: tokens of the largest window.
        limit: most samples; None for all.
        seed: chooses samples where the benchmark fixes no seed.

    Returns:
        The samples; `max_tokens` (tokens of the longest prompt with its answer) and `too_long`
        (samples that were drawn and do not fit the window).

    Raises:
        ConfigError: a setting or file is wrong; names file and line. Or no row suits the settings.
        PreflightError: no sample fits, or a file cannot be fetched.
    """
    check_task(task)
    settings, benchmark = settings_of(task), BENCHMARKS[task.task]
    reading = Reading(
        name=task.name,
        files={name: local_file(task.name, name, path) for name, path in task.data_files.items()},
        tokenizer=tokenizer,
        seed=seed,
        limit=limit if benchmark.draws else None,
        shots=settings["shots"],
        settings=settings,
    )
    highest = min(settings["max_tokens"] or window, window)
    rows: list[Row] = []
    longest, too_long, outside = 0, 0, 0
    for sample in benchmark.read(reading):
        characters = len(plain_prompt(sample))
        # Tokenising a million characters takes seconds, and a file may have hundreds of such rows.
        size = (
            characters if characters > MAX_CHARACTERS * highest else num_tokens(sample, tokenizer)
        )
        if size < settings["min_tokens"] or size > (settings["max_tokens"] or size):
            outside += 1
        elif size > window:
            too_long += 1
        else:
            rows.append(sample)
            longest = max(longest, size)
        if not benchmark.draws and len(rows) == limit:
            break
    if not (rows or too_long or outside):
        chosen = ", ".join(f"{key}: {value}" for key, value in task.overrides.items())
        raise ConfigError(
            f"{task.name}: no row of its files suits its settings ({chosen or 'none are given'}); "
            "correct `overrides` in the suite, or the files"
        )
    if not rows:
        raise PreflightError(
            f"{task.name}: no sample can be asked: {too_long} are longer than the largest window "
            f"({window} tokens) and {outside} are outside of min_tokens and max_tokens; leave the "
            "task out with evaluation.short.capacities or evaluation.short.tasks"
        )
    return rows, {"max_tokens": longest, "too_long": too_long}


def num_tokens(sample: Row, tokenizer: Any) -> int:
    """Count the tokens of a sample with its answer, in the longer of its two forms.

    The form for chat models is only counted if the tokenizer has a template.
    """
    size = count_tokens(tokenizer, plain_prompt(sample))
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            messages(sample), tokenize=False, add_generation_prompt=True
        )
        encoded = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        size = max(size, len(encoded))
    return size + int(sample["max_new_tokens"])
