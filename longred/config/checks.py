"""Rules across the sections of a recipe, and secrets that no setting may contain."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from longred.config.advice import farthest, shorter, step_advice
from longred.errors import shown
from longred.method.methods import BUCKETS, METHODS, method_problem, method_terms
from longred.method.rope import settings_problem

if TYPE_CHECKING:
    from longred.config.run import RunConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")
MIN_PRACTICE_TOKENS = 64

_REFUSED = {
    "a password in an address; give it in the environment instead (PGPASSWORD, "
    "MLFLOW_TRACKING_PASSWORD, …)": re.compile(r"://[^/?#\s@:]*:[^/?#\s@]+@"),
    "a signature or key in an address; give it in the environment instead": re.compile(
        r"://\S*[?&][\w-]*(token|key|secret|password|signature)=[^&\s]", re.IGNORECASE
    ),
    "a token of the Hugging Face hub; set HF_TOKEN instead": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead": re.compile(
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"
    ),
    "a NUL character; leave it out": re.compile(r"\0"),
}

REMOTES = (
    "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hdfs", "webhdfs",
    "sftp", "ssh", "smb", "hf", "file", "local", "memory",
)  # fmt: skip
"""Protocols of fsspec behind which files can be written and listed at once."""

TRACKING = (
    "http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks",
    "databricks-uc", "uc",
)  # fmt: skip
"""Protocols of MLflow's tracking stores; databases may name a driver, as in mysql+pymysql."""


def refused_texts(values: Any, key: str = "") -> Iterator[str]:
    """Yield a message for every text that contains a secret; the text itself is not repeated.

    Settings are written to a run's record, to MLflow and to Prefect, so secrets belong into the
    environment.

    Args:
        values: settings before validation.
        key: their dotted key.
    """
    if isinstance(values, str):
        for what, pattern in _REFUSED.items():
            if pattern.search(values):
                yield f"{key}: holds {what}"
        return
    items: Any = ()
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, list | tuple):
        items = enumerate(values)
    for name, value in items:
        yield from refused_texts(value, f"{key}.{name}" if key else str(name))


def problems(config: "RunConfig") -> Iterator[str]:
    """Yield the contradictions between sections, by dotted key; each assumes that none precedes."""
    original, target = config.original_window, config.target_window
    if target <= original:
        yield f"target_window: {target} must be larger than original_window ({original})"
    yield from _store_problems(config)
    yield from _data_problems(config)
    yield from _extension_problems(config)
    data, evaluation = config.data.add_bos, config.evaluation.add_bos_token
    if data is not None and evaluation is not None and data != evaluation:
        yield (
            f"evaluation.add_bos_token: {str(evaluation).lower()} contradicts data.add_bos "
            f"({str(data).lower()}); leave one of them out"
        )
    selection = config.selection
    if (selection.strategy == "manual") != (selection.layers is not None):
        yield "selection.layers: give the layers with strategy manual, and only with it"
    yield from _training_problems(config)
    yield from _evaluation_problems(config)
    yield from _step_problems(config)
    yield from _windows_problems(config)


def _store_problems(config: "RunConfig") -> Iterator[str]:
    protocol, separator, _ = (config.store.remote or "").partition("://")
    if separator and protocol not in REMOTES:
        yield (
            f"store.remote: cannot keep artifacts behind {shown(protocol)}://; give an address "
            f"such as s3://bucket/folder (protocols: {', '.join(REMOTES)}) or a folder"
        )
    if "://" in config.store.path:
        yield (
            f"store.path: is a folder on this machine, got {shown(config.store.path)}; an address "
            "goes into store.remote"
        )
    uri = config.tracking.uri or ""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        yield f"tracking.uri: {shown(uri)} has no protocol; write http://{shown(uri)}"
    protocol, separator, _ = uri.partition("://")
    if separator and protocol.partition("+")[0] not in TRACKING:
        yield (
            f"tracking.uri: MLflow does not know {shown(protocol)}://; give the address of a "
            f"server or database (protocols: {', '.join(TRACKING)})"
        )


def _data_problems(config: "RunConfig") -> Iterator[str]:
    data = config.data
    if set(data.ratio) != set(BUCKETS):
        yield (
            "data.ratio: needs exactly the buckets long, short and original; name all three, with "
            "0 for one that is not filled"
        )
    elif not any(data.ratio.values()):
        yield "data.ratio: all buckets are 0; give at least one of them a part"
    for bucket, part in data.ratio.items():
        if part and not any(source.buckets.get(bucket, 0.0) > 0 for source in data.sources):
            yield f"data.sources: no source has a share of the {bucket} bucket"
    names = [source.name for source in data.sources]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        yield f"data.sources: names must differ, and two are {shown(twice)}"
    for number, source in enumerate(data.sources):
        key = f"data.sources.{number}"
        if source.kind in ("files", "hub") and not source.path:
            yield f"{key}.path: a source of kind {source.kind} needs a path"
        if source.kind == "hub" and not _COMMIT.fullmatch(source.revision or ""):
            yield (
                f"{key}.revision: a hub data set needs the full commit hash "
                f"(40 hexadecimal digits), since a branch can move; got {shown(source.revision)}"
            )
        if source.kind == "practice" and (source.length or 0) < MIN_PRACTICE_TOKENS:
            yield (
                f"{key}.length: a source of kind practice needs a length of "
                f"{MIN_PRACTICE_TOKENS} tokens or more"
            )
    if data.executor.kind == "slurm" and not data.executor.partition:
        yield "data.executor.partition: a Slurm job needs the name of a partition"
    # The published comparison of distillation lengths takes the whole window.
    is_whole = data.short_length == config.original_window
    if data.short_length * 2 > config.original_window and not is_whole:
        advice = " ".join(shorter(config))
        yield (
            f"data.short_length: {data.short_length} is more than half of original_window "
            f"({config.original_window}), where the teacher is not reliable; "
            f"{f'use {advice}' if advice else 'lower it'}"
        )


def _extension_problems(config: "RunConfig") -> Iterator[str]:
    problem = settings_problem(config.extension.method, config.extension.settings())
    if problem:
        yield problem
    yield from _search_problems(config)
    if config.extension.short_factor is None:
        return
    for method in config.training.methods():
        recipe = config.training.recipe(METHODS[method].merges or method)
        if recipe.positions not in (None, "cream", "uniform"):
            yield (
                f"extension.short_factor: with method {method} rows would end on both sides of "
                "original_window, and RoPE's frequencies are chosen for a whole batch; train "
                "cream, longred-c or longred-u, whose skipped positions all end at target_window"
            )
        elif not {"long", recipe.skipped_bucket}.intersection(recipe.buckets()):
            yield (
                f"extension.short_factor: method {method} reads no row beyond original_window, "
                "where the student differs from the original, so there is nothing to learn; train "
                "another method, or remove the key"
            )


def _search_problems(config: "RunConfig") -> Iterator[str]:
    extension = config.extension
    if not extension.search.num_rounds:
        return
    if extension.method != "longrope":
        yield (
            f"extension.search: method {extension.method} has no factors to search for; set "
            "extension.method=longrope, or extension.search.num_rounds=0"
        )
    if extension.long_factor is not None:
        yield (
            "extension.search: extension.long_factor gives the factors already; remove one of both"
        )
    if extension.windows:
        yield (
            "extension.search: every window would need a search of its own, on weights that are "
            "still to be trained; use it without extension.windows"
        )


def _training_problems(config: "RunConfig") -> Iterator[str]:
    training = config.training
    if training.method in training.baselines:
        yield f"training.baselines: {training.method} is already training.method"
    trains_adapters = "lora" in training.methods()
    problem = training.settings_problem(trains_adapters=trains_adapters)
    if problem:
        yield problem
    for method in training.methods():
        problem = method_problem(
            method,
            carried=training.lora.objectives,
            sequence_parallel=training.parallel.sequence_parallel,
        )
        if problem:
            yield problem
            return
    yield from _ratio_problems(config)
    original, target = config.original_window, config.target_window
    for method in training.methods():
        if training.recipe(method).positions in ("cream", "uniform") and original**2 <= 8 * target:
            advice = " ".join(farthest(config, (original**2 - 1) // 8))
            yield (
                f"target_window: {target} is too far for the skipped positions of {method} within "
                f"{original} tokens; use {f'{advice}, or ' if advice else ''}another method"
            )


def _ratio_problems(config: "RunConfig") -> Iterator[str]:
    """Check that methods can do without the buckets whose part is 0."""
    training = config.training
    for method in training.methods():
        whole = method_terms(METHODS[method].merges or method, training.lora.objectives)
        kept = whole.reading(training.ratio)
        if not kept.terms:
            yield (
                f"data.ratio: {whole.terms[0].bucket} is 0, the only bucket that {method} reads; "
                "give it a part, or leave the method out"
            )
            return
        for term in whole.terms:
            if term in kept.terms or term.objective == "cross_entropy":
                continue
            weight = getattr(training, term.weight) if term.weight else 1.0
            own = getattr(whole, str(term.weight), 0.0)
            if term.is_optional and (own if weight is None else weight) == 0:
                continue
            yield (
                f"data.ratio: {term.bucket} is 0, and {method} distils on it; give it a part, or "
                "use a method that only predicts text, such as mix-cpt"
            )
            return
        is_weighted = any(term.weight for term in kept.terms)
        if not is_weighted or training.ratio["long"]:
            continue
        if training.weights == "auto" and not any(
            term.objective == "cross_entropy" for term in kept.terms
        ):
            yield (
                f"data.ratio: long is 0, and training.weights auto scales the losses of {method} "
                "to that of long text; give it a part, or set training.weights to fixed"
            )
        elif training.weighting == "token_share" and len(kept.buckets()) > 1:
            yield (
                "data.ratio: long is 0, and training.weighting token_share weighs the losses of "
                f"{method} by tokens per token of long text; give it a part, or set "
                "training.weighting to formula"
            )


def _evaluation_problems(config: "RunConfig") -> Iterator[str]:
    evaluation, window = config.evaluation, config.target_window
    if evaluation.kept and not config.training.keep_steps:
        yield "evaluation.kept: no student is saved; name the steps in training.keep_steps"
    for name in ("ruler", "perplexity"):
        too_long = [length for length in getattr(evaluation, name).lengths if length > window]
        if too_long:
            yield f"evaluation.{name}.lengths: {shown(too_long)} exceed target_window ({window})"
    text = evaluation.perplexity
    short_context = text.short_context or config.original_window
    too_short = [length for length in text.lengths if length <= short_context]
    if text.judge is not None and too_short:
        yield (
            f"evaluation.perplexity.lengths: {shown(too_short)} are not longer than the judge's "
            f"short context ({short_context}); leave them out or lower "
            "evaluation.perplexity.short_context"
        )


def _step_problems(config: "RunConfig", whole: "RunConfig | None" = None) -> Iterator[str]:
    """Check the rows of a step; advice holds for all windows of the `whole` run."""
    whole = whole or config
    training, layout = config.training, config.training.parallel
    lengths = training.block_lengths()
    problem = layout.problem()
    if problem:
        yield problem
        return
    for method in training.methods():
        for bucket, tokens in training.bucket_tokens(method).items():
            if tokens < lengths[bucket] or tokens % lengths[bucket]:
                yield (
                    f"training.step_tokens: {training.step_tokens} gives the {bucket} bucket "
                    f"{float(tokens):g} tokens a step for {method}, not a whole number of blocks "
                    f"of {lengths[bucket]}; {step_advice(whole)}"
                )
                continue
            num_rows, readers = int(tokens) // lengths[bucket], layout.readers(bucket)
            if num_rows % readers:
                yield (
                    f"training.parallel.num_processes: {layout.num_processes} processes cannot "
                    f"divide the {num_rows} rows of the {bucket} bucket in a step of {method}, "
                    f"since {readers} of them read different rows; use fewer processes, or change "
                    f"training.step_tokens: {step_advice(whole)}"
                )
                continue
            problem = layout.rows_problem(bucket, num_rows, lengths["long"])
            if problem:
                yield f"{problem} ({method})"


def _windows_problems(config: "RunConfig") -> Iterator[str]:
    """Check the intermediate windows, each like a run of its own."""
    windows, is_abf = config.extension.windows, config.extension.method == "abf"
    reached = config.original_window
    for number, window in enumerate(windows):
        key = f"extension.windows.{number}"
        if not reached < window.target_window < config.target_window:
            yield (
                f"{key}.target_window: {window.target_window} must lie between {reached} and "
                f"target_window ({config.target_window}); give windows in rising order"
            )
        reached = window.target_window
        if is_abf and window.rope_theta is None and config.extension.rope_theta is not None:
            yield (
                f"{key}.rope_theta: give a theta for this window too, or leave out "
                "extension.rope_theta, and all follow the rule theta x factor squared"
            )
        if config.extension.method not in ("abf", "cope") and window.rope_theta is not None:
            yield f"{key}.rope_theta: only methods abf and cope read it; remove it"
    if windows and "lora" in config.training.methods():
        yield (
            "extension.windows: method lora needs the original's own weights under its adapters, "
            "since they are its teacher; from the second window on, the weights would be a merged "
            "model. Train lora in a run without windows"
        )
    for number, at_window in enumerate(config.windows()):
        found = (
            *_extension_problems(at_window),
            *_training_problems(at_window),
            *_step_problems(at_window, config),
        )
        for problem in found:
            yield f"extension.windows.{number}: at this window, {problem}"
