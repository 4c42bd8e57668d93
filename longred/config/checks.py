"""What cannot work across the sections of a recipe, each problem naming its dotted key."""

import re
from collections.abc import Iterator

from longred.config.values import RunValues
from longred.method import rope as rope_methods
from longred.method.job import fp8_problem
from longred.method.kept import kept_problem
from longred.method.methods import BUCKETS, METHODS
from longred.method.schedules import schedule_problem

_COMMIT = re.compile(r"[0-9a-f]{40}")
MIN_PRACTICE_TOKENS = 64


def problems(config: RunValues) -> list[str]:
    """Return what cannot work across sections, each naming its dotted key."""
    found = [problem for check in CHECKS for problem in check(config)]
    # A step cannot be divided as long as windows and ratio are wrong.
    return found or [*_step_problems(config), *_way_problems(config)]


def _window_problems(config: RunValues) -> Iterator[str]:
    if config.target_window <= config.original_window:
        yield (
            f"target_window: {config.target_window} must be larger than "
            f"original_window ({config.original_window})"
        )


def _data_problems(config: RunValues) -> Iterator[str]:
    data = config.data
    if data.short_length * 2 > config.original_window:
        yield (
            f"data.short_length: {data.short_length} is more than half of "
            f"original_window ({config.original_window}); such a teacher teaches noise"
        )
    if set(data.ratio) != set(BUCKETS):
        yield "data.ratio: needs exactly the buckets long, short and original"
    for bucket in BUCKETS:
        if not any(source.buckets.get(bucket, 0.0) > 0 for source in data.sources):  # type: ignore[call-overload]
            yield f"data.sources: no source has a share of the {bucket} bucket"
    names = [source.name for source in data.sources]
    if len(set(names)) != len(names):
        yield "data.sources: names must differ"


def _source_problems(config: RunValues) -> Iterator[str]:
    for number, source in enumerate(config.data.sources):
        key = f"data.sources.{number}"
        if source.kind in ("files", "hub") and not source.path:
            yield f"{key}.path: a source of kind {source.kind} needs a path"
        if source.kind == "hub" and not _COMMIT.fullmatch(source.revision or ""):
            yield (
                f"{key}.revision: a hub data set needs the full commit hash "
                "(40 hexadecimal digits), since a branch can move"
            )
        if source.kind == "practice" and (source.length or 0) < MIN_PRACTICE_TOKENS:
            yield (
                f"{key}.length: a source of kind practice needs a length of "
                f"{MIN_PRACTICE_TOKENS} tokens or more"
            )


def _executor_problems(config: RunValues) -> Iterator[str]:
    executor = config.data.executor
    if executor.kind == "slurm" and not executor.partition:
        yield "data.executor.partition: a Slurm job needs the name of a partition"


def _extension_problems(config: RunValues) -> Iterator[str]:
    extension = config.extension
    if extension.method == "abf" and extension.rope_theta is None:
        yield "extension.rope_theta: method abf needs the raised theta"
    for name in extension.settings().keys() - rope_methods.METHODS[extension.method].settings:
        yield (
            f"extension.{name}: method {extension.method} does not use it; remove it or set it to "
            "null"
        )


def _way_problems(config: RunValues) -> Iterator[str]:
    """Check the windows on the way to the target, each as if it were one."""
    windows = config.extension.windows
    reached = config.original_window
    for number, window in enumerate(windows):
        if not reached < window.target_window < config.target_window:
            yield (
                f"extension.windows.{number}.target_window: {window.target_window} must lie "
                f"between {reached} and target_window ({config.target_window}); give windows in "
                "rising order"
            )
            return
        reached = window.target_window
        if config.extension.method == "abf" and window.rope_theta is None:
            yield f"extension.windows.{number}.rope_theta: method abf needs a raised theta for each"
        if config.extension.method != "abf" and window.rope_theta is not None:
            yield f"extension.windows.{number}.rope_theta: only method abf reads it; remove it"
    if windows and "lora" in config.training.methods():
        yield (
            "extension.windows: method lora needs the original's own weights under its adapters, "
            "since they are its teacher; from the second window on they would lie on a merged "
            "model. Train lora in a run without windows"
        )
    for number, at_window in enumerate(config.windows()):
        for check in (_extension_problems, _training_problems, _step_problems):
            for problem in check(at_window):
                yield f"extension.windows.{number}: at this window, {problem}"


def _selection_problems(config: RunValues) -> Iterator[str]:
    selection = config.selection
    if (selection.strategy == "manual") != (selection.layers is not None):
        yield "selection.layers: give the layers with strategy manual, and only with it"


def _training_problems(config: RunValues) -> Iterator[str]:
    training = config.training
    if training.method in training.baselines:
        yield f"training.baselines: {training.method} is already training.method"
    adapts = "lora" in training.methods()
    problems = (
        schedule_problem(training),
        kept_problem(training),
        fp8_problem(training.fp8, dtype=training.dtype, trains_adapters=adapts),
    )
    yield from filter(None, problems)
    carried = METHODS[training.lora.objectives]
    if "lora" in training.methods() and (carried.merges or carried.trains_adapters):
        yield (
            f"training.lora.objectives: {training.lora.objectives} trains nothing that adapters "
            "could be trained on, and on a merged model they would have the merged one as their "
            "teacher; name a method that trains, such as longred-c"
        )
        return
    original, target = config.original_window, config.target_window
    for method in training.methods():
        if training.recipe(method).positions in ("cream", "uniform") and original**2 <= 8 * target:
            yield (
                f"original_window: {original} leaves {method} no room for a middle run of skipped "
                f"positions: it must be larger than 8 x target_window / original_window "
                f"({8 * target / original:g}); use a smaller target_window or another method"
            )


def _evaluation_problems(config: RunValues) -> Iterator[str]:
    if config.evaluation.kept and not config.training.keep_steps:
        yield "evaluation.kept: nothing is kept; name the steps in training.keep_steps"
    asked = {
        "ruler": config.evaluation.ruler.lengths,
        "perplexity": config.evaluation.perplexity.lengths,
    }
    for name, lengths in asked.items():
        too_long = [length for length in lengths if length > config.target_window]
        if too_long:
            window = config.target_window
            yield f"evaluation.{name}.lengths: {too_long} exceed target_window ({window})"


def _step_problems(config: RunValues) -> Iterator[str]:
    training = config.training
    lengths = training.block_lengths()
    layout = training.parallel.layout()
    problem = layout.problem()
    if problem:
        yield problem
        return
    for method in training.methods():
        for bucket, tokens in training.bucket_tokens(method).items():
            if tokens < lengths[bucket] or tokens % lengths[bucket]:
                unit = sum(config.data.ratio.values()) * max(lengths.values())
                yield (
                    f"training.step_tokens: {training.step_tokens} gives the {bucket} bucket "
                    f"{float(tokens):g} tokens a step for {method}, not a whole number of blocks "
                    f"of {lengths[bucket]}; try a multiple of {unit}"
                )
                continue
            num_rows = int(tokens) // lengths[bucket]
            problem = layout.rows_problem(bucket, num_rows, lengths["long"])
            if problem:
                yield f"{problem} ({method})"


CHECKS = (
    _window_problems,
    _data_problems,
    _source_problems,
    _executor_problems,
    _extension_problems,
    _selection_problems,
    _training_problems,
    _evaluation_problems,
)
