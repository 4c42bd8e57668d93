"""Finds what makes trainings fit the memory of a device: settings, more GPUs, or adapters.

Everything that is proposed has been verified by the estimate that refused the trainings.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from longred.cost.flops import batches
from longred.cost.memory import memory_parts
from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob
from longred.method.layout import Layout
from longred.method.methods import METHODS

Sized = tuple[TrainingJob, Mapping[str, int]]
"""A training, and the row length of each of its buckets in tokens."""


class Remedy(NamedTuple):
    """Settings with which every training fits.

    Attributes:
        settings: `key=value`, all of them needed together.
        memory_bytes: peak memory of one process with them.
        words: what they cost, or what they are.
    """

    settings: tuple[str, ...]
    memory_bytes: float
    words: str = ""


LORA: Mapping[str, Any] = {
    "rank": 16,
    "alpha": 32.0,
    "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
"""Adapters proposed if full training does not fit; equal to the defaults of `training.lora`."""

TILE_TOKENS = 8192
MAX_PROCESSES = 64
"""Largest number of GPUs that is proposed."""


class _Choice(NamedTuple):
    """A value of a setting that saves memory; `price` orders what costs more time or exactness."""

    name: str
    value: Any
    price: float
    words: str = ""


def remedies(
    shape: ModelShape,
    trainings: Sequence[Sized],
    *,
    kind: str,
    limit_bytes: float,
    adapters_for: str | None = None,
    can_divide: Callable[[Layout], bool] = lambda layout: True,
) -> Iterator[Remedy]:
    """Yield the ways to make all trainings fit, the least costly first; nothing if none does.

    The first one changes the settings that cost least; then comes the smallest number of GPUs that
    is enough with other settings, and without; then adapters instead of all weights.

    Args:
        shape: the model's shape.
        trainings: the trainings as configured.
        kind: `cpu` or `cuda`.
        limit_bytes: memory of one device without the reserve.
        adapters_for: the method that adapters may replace; None if they may not.
        can_divide: whether a layout can divide the rows of every step.
    """
    found = _cheapest(shape, trainings, kind, limit_bytes)
    if found is not None:
        yield found
    if kind == "cuda":
        yield from _more_gpus(shape, trainings, limit_bytes, can_divide)
    if found is None and adapters_for is not None:
        adapted = _with_adapters(shape, trainings, adapters_for)
        words = [f"training.method=lora training.lora.objectives={adapters_for}"]
        saved = adapted and _cheapest(shape, adapted, kind, limit_bytes)
        if saved:
            yield Remedy((*words[0].split(), *saved.settings), saved.memory_bytes, "adapters")


def _more_gpus(
    shape: ModelShape,
    trainings: Sequence[Sized],
    limit_bytes: float,
    can_divide: Callable[[Layout], bool],
) -> Iterator[Remedy]:
    """Yield the smallest number of GPUs that is enough with other settings, and without."""
    helped = False
    for layout in _layouts(shape, trainings[0][0].layout):
        if not can_divide(layout):
            continue
        parallel = dataclasses.asdict(layout)
        divided = [(dataclasses.replace(job, parallel=parallel), rows) for job, rows in trainings]
        changed = [
            f"training.parallel.{name}={value}"
            for name, value in parallel.items()
            if value != getattr(trainings[0][0].layout, name)
        ]
        words = f"{layout.num_processes} GPUs"
        alone = peak(shape, divided, "cuda")
        if alone <= limit_bytes:
            yield Remedy(tuple(changed), alone, words)
            return
        saved = None if helped else _cheapest(shape, divided, "cuda", limit_bytes)
        if saved:
            helped = True
            words = f"{words}; {saved.words}" if saved.words else words
            yield Remedy((*changed, *saved.settings), saved.memory_bytes, words)


def _layouts(shape: ModelShape, layout: Layout) -> Iterator[Layout]:
    """Yield larger layouts, fewest processes first, then fewest of them that share a row."""
    for number in range(layout.num_processes + 1, MAX_PROCESSES + 1):
        for sharing in range(layout.sequence_parallel, shape.num_key_heads + 1):
            found = Layout(
                num_processes=number, replicas=layout.replicas, sequence_parallel=sharing
            )
            if shape.num_key_heads % sharing == 0 and found.problem() is None:
                yield found


def _cheapest(
    shape: ModelShape, trainings: Sequence[Sized], kind: str, limit_bytes: float
) -> Remedy | None:
    """Return the cheapest settings with which all trainings fit; None if none do."""
    options = list(_options(trainings, kind))
    combinations = sorted(
        (tuple(filter(None, chosen)) for chosen in itertools.product(*options)),
        key=lambda chosen: (sum(choice.price for choice in chosen), len(chosen)),
    )
    # Tiles need memory of their own. All other savings together tell whether to search at all.
    most = combinations[-1]
    untiled = [choice for choice in most if choice.name != "mlp_tile_tokens"]
    if min(_peak_with(shape, trainings, one, kind) for one in (most, untiled)) > limit_bytes:
        return None
    for chosen in combinations:
        needed = _peak_with(shape, trainings, chosen, kind)
        if needed <= limit_bytes:
            settings = tuple(f"training.{choice.name}={_text(choice.value)}" for choice in chosen)
            words = ", ".join(choice.words for choice in chosen if choice.words)
            return Remedy(settings, needed, words)
    return None


def _peak_with(
    shape: ModelShape, trainings: Sequence[Sized], chosen: Sequence[_Choice], kind: str
) -> float:
    values: dict[str, Any] = {choice.name: choice.value for choice in chosen}
    return peak(
        shape, [(dataclasses.replace(job, **values), lengths) for job, lengths in trainings], kind
    )


def _options(trainings: Sequence[Sized], kind: str) -> Iterator[list[_Choice | None]]:
    """Yield, for each setting that saves memory, its values: None for the present one."""
    job = trainings[0][0]
    rows = [
        (job.seen_rows(b, lengths[b])[1], b)
        for job, lengths in trainings
        for b in job.recipe.buckets()
    ]
    longest = max(length for length, _ in rows)
    shorter = max((length for length, bucket in rows if bucket != "long"), default=0)
    if not (job.fused or job.compile):
        yield [None, _Choice("fused", True, 0.5, "other last bits")]
    cut = min(job.short_micro_batch_tokens or job.micro_batch_tokens, job.micro_batch_tokens)
    if cut > shorter > 0:
        yield [None, _Choice("short_micro_batch_tokens", shorter, 1.0)]
    if job.micro_batch_tokens > longest:
        yield [None, _Choice("micro_batch_tokens", longest, 1.1)]
    kept = job.activation_checkpointing
    recomputing = [
        _Choice("activation_checkpointing", "selective", 2.0, "recomputes activations"),
        _Choice("activation_checkpointing", "full", 4.0, "recomputes activations and attention"),
    ]
    if kept != "full":
        yield [None, *(recomputing if kept == "none" else recomputing[1:])]
    if job.uncheckpointed_tokens:
        yield [None, _Choice("uncheckpointed_tokens", 0, 1.2, "recomputes short rows too")]
    if not job.mlp_tile_tokens:
        yield [None, _Choice("mlp_tile_tokens", TILE_TOKENS, 1.5)]
    if kind == "cuda" and not job.optimizer_offload:
        yield [None, _Choice("optimizer_offload", True, 3.0, "keeps moments in host memory")]
    if job.optimizer != "adamw8bit":
        yield [None, _Choice("optimizer", "adamw8bit", 8.0, "rounds moments to 8 bits")]


def _with_adapters(
    shape: ModelShape, trainings: Sequence[Sized], method: str
) -> list[Sized] | None:
    """Return the trainings with adapters in place of one method; None if they cannot be used."""
    job = trainings[0][0]
    targets = [name for name in LORA["targets"] if name in shape.linears]
    if METHODS[method].merges or job.changes != "all" or job.fp8 or not targets:
        return None
    lora = {**LORA, "targets": targets, "objectives": method}
    return [
        (dataclasses.replace(one, method="lora", lora=lora) if one.method == method else one, rows)
        for one, rows in trainings
    ]


def peak(shape: ModelShape, trainings: Sequence[Sized], kind: str) -> float:
    """Return the peak memory of one process in the largest of several trainings, bytes."""
    return max(
        sum(memory_parts(shape, job, batches(job, lengths), device=kind).values())
        for job, lengths in trainings
    )


def _text(value: Any) -> str:
    """Return a value as a recipe writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
