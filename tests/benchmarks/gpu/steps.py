"""Time single micro-batches of a training, and compute a step's time from them."""

import contextlib
import dataclasses
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import training
from torch import Tensor

from gpu.child import Check
from gpu.sizes import job_at, planned_batch, scale_of
from longred.cost.calibrate import timed
from longred.cost.machine import peak_bytes
from longred.method.methods import Term
from longred.training.step import MicroBatch
from longred.training.trainer import Trainer

REPEATS = 3
Batches = Mapping[str, MicroBatch]


@contextlib.contextmanager
def trainer_at(
    check: Check,
    layers: int,
    settings: Mapping[str, Any],
    *,
    kind: type[Trainer] = Trainer,
    preset: training.Preset | None = None,
) -> Iterator[tuple[Trainer, Batches]]:
    """Yield a trainer with random weights, and the first micro-batch of each bucket in one step."""
    preset = preset or scale_of(check).preset
    training.random_weights()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training.write_inputs(preset, layers, folder, 1)
        job = job_at(check, layers, settings, folder, preset)
        trainer = kind(job, folder / "work")
        first: dict[str, MicroBatch] = {}
        for batch in trainer.next_batches():
            first.setdefault(batch.bucket, batch)
        yield trainer, first


def backward(trainer: Trainer, batch: MicroBatch) -> Mapping[Term, Tensor]:
    """Run forward and backward of a micro-batch as the trainer does; gradients accumulate."""
    return trainer._backward(batch, trainer.balance.weights())


def measure_batch(
    trainer: Trainer,
    batch: MicroBatch,
    *,
    repeats: int = REPEATS,
    before: Callable[[MicroBatch], MicroBatch] = lambda batch: batch,
) -> dict[str, float]:
    """Return a micro-batch's median time, first-run time, and peak memory after the first run.

    Args:
        trainer: trainer that runs it.
        batch: micro-batch to run.
        repeats: number of runs after the first, of which the median is taken.
        before: function applied to the micro-batch before each run.
    """
    device = trainer.device
    losses: list[Mapping[Term, Tensor]] = []

    def work(one: MicroBatch) -> float:
        return timed(lambda: losses.append(backward(trainer, one)), device)

    first = work(before(batch))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = sorted(work(before(batch)) for _ in range(repeats))
    for loss in losses[-1].values():
        assert torch.isfinite(loss).all(), f"a loss is {loss.item()}"
    seconds = times[len(times) // 2]
    found = {
        "seconds": seconds,
        "tokens_per_second": batch.input_ids_BT.numel() / seconds,
        "peak_bytes": peak_bytes(device),
        "first_seconds": first,
    }
    if device.type == "cuda":
        found["reserved_bytes"] = float(torch.cuda.max_memory_reserved())
    return found


def write_batch(
    check: Check,
    trainer: Trainer,
    batch: MicroBatch,
    layers: int,
    changed: Mapping[str, Any],
    **options: Any,
) -> None:
    """Measure a micro-batch and write its line, with the planned figures."""
    measured = measure_batch(trainer, batch, **options)
    lengths = scale_of(check).preset.lengths
    check.line(
        batch.bucket,
        settings={"layers": layers, "rows": len(batch.input_ids_BT), "changed": dict(changed)},
        measured=measured,
        planned=planned_batch(check, layers, trainer.job, batch.bucket, lengths),
    )


def with_documents(batch: MicroBatch, count: int, generator: torch.Generator) -> MicroBatch:
    """Return the micro-batch with `count` documents per row; each call draws new lengths."""
    rows, length = batch.input_ids_BT.shape
    ids = []
    for _ in range(rows):
        starts = torch.randperm(length - 1, generator=generator)[: count - 1] + 1
        is_start = torch.zeros(length, dtype=torch.int32)
        is_start[starts] = 1
        ids.append(is_start.cumsum(0, dtype=torch.int32))
    return dataclasses.replace(batch, document_ids_BT=torch.stack(ids))


def whole_step(seconds: Mapping[str, float], counts: Mapping[str, int], update: float) -> float:
    """Return a step's time from those of one micro-batch per bucket and of the update."""
    return sum(counts[bucket] * seconds[bucket] for bucket in counts) + update


def at_depth(points: Mapping[int, float], layers: int) -> float:
    """Return a figure at a depth: as measured there, or linearly extrapolated from two depths."""
    if layers in points:
        return points[layers]
    (low, first), (high, last) = sorted(points.items())
    return first + (last - first) / (high - low) * (layers - low)


def release(device: torch.device) -> None:
    """Return unused memory to the device and reset the peak-memory counters."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
