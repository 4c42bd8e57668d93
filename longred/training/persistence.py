"""Save a trainer to a checkpoint and restore it."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch

from longred.errors import MismatchError
from longred.method.job import TrainingJob
from longred.store.artifacts import storage_errors
from longred.training.checkpoint import Checkpoint, SavedCheckpoint
from longred.training.checks import check_fp8_quality
from longred.training.machine import environment_of
from longred.training.optimizer import (
    MOMENTS,
    checkpoint_bytes,
    load_optimizer_tensors,
    named_weights,
    optimizer_tensors,
)
from longred.training.sharding import local, row_range, rows_of
from longred.training.tensor_files import Part
from longred.training.trainer import Trainer

log = logging.getLogger(__name__)

_OTHER_BYTES = 2**20
"""Upper bound of everything except tensors in a checkpoint or a model folder."""


def save(trainer: Trainer) -> None:
    """Commit a checkpoint of the finished step, unless it exists.

    Raises:
        StorageError: the disk is full; older checkpoints are intact.
    """
    if trainer.step == trainer.saved_step:
        return
    # The journal first: a checkpoint must never contain steps that the journal lost.
    with trainer.world.together(), storage_errors(trainer.journal.path):
        trainer.journal.flush()
    trainer.checkpoints.save(checkpoint_of(trainer))
    trainer.saved_step = trainer.step
    log.info("saved step %d of %d", trainer.step, trainer.job.num_steps)


def load(trainer: Trainer) -> None:
    """Resume from the newest intact checkpoint, or start at step 0 if none was ever saved.

    Raises:
        MismatchError: every checkpoint is damaged, or it belongs to another job or other data.
        PreflightError: the disk has no room for the next checkpoint, or fp8 is not accurate enough.
    """
    checkpoint = trainer.checkpoints.newest()
    if checkpoint is not None:
        restore(trainer, checkpoint)
    trainer.world.on_first(lambda: _prepare_work(trainer))
    if trainer.job.fp8:
        batches = trainer.next_batches()
        with trainer.world.together():
            check_fp8_quality(trainer.objectives, batches)


def _prepare_work(trainer: Trainer) -> None:
    job = trainer.job
    trainer.journal.truncate_after(trainer.step)
    if trainer.step < job.num_steps:
        # The result and every kept student are whole models in float32.
        num_models = 1 + sum(step > trainer.step for step in job.keep_steps)
        model_bytes = 4 * sum(weight.numel() for weight in trainer.student.parameters())
        trainer.checkpoints.require_space(
            checkpoint_bytes(trainer.optimizer, trainer.student) + _OTHER_BYTES,
            result_bytes=num_models * (model_bytes + _OTHER_BYTES),
        )
    repeated = {bucket: epochs for bucket, epochs in trainer.epochs.items() if epochs > 1}
    if repeated:
        log.warning("%s: reads blocks more than once, in epochs: %s", job.method, repeated)
    log.info("%s: starting after step %d of %d", job.method, trainer.step, job.num_steps)


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """Return everything that a trainer needs to resume after its last finished step."""
    weights = named_weights(trainer.student)
    tensors = {
        "model": {name: local(w.detach()) for name, w in weights.items()},
        "optimizer": optimizer_tensors(trainer.optimizer, trainer.student),
        "random": trainer.random_states(),
    }
    rows = {name: rows_of(w) for name, w in weights.items()}
    moment_rows = {f"{moment}.{name}": r for moment in MOMENTS for name, r in rows.items()}
    part = _part_of(trainer)
    parts = {
        "model": part._replace(rows=rows),
        "optimizer": part._replace(rows=moment_rows),
        "random": Part(trainer.world.rank, trainer.world.size),
    }
    state = {
        "step": trainer.step,
        "job": trainer.job.identity(),
        "loader": trainer.loader.state(),
        "seconds": trainer.seconds,
        "metrics": dict(trainer.metrics),
        "spikes": trainer.spikes.state(),
        "weights": trainer.balance.state(),
        "environment": environment_of(trainer.device, trainer.job),
    }
    return Checkpoint(trainer.step, tensors, state, parts)


def _part_of(trainer: Trainer) -> Part:
    """Return which shard of the weights this process holds."""
    mesh = trainer.meshes.weights
    if mesh is None:
        return Part()
    last = mesh.ndim - 1
    is_written = mesh.ndim == 1 or mesh.get_local_rank(0) == 0
    return Part(mesh.get_local_rank(last), mesh.size(last), is_written=is_written)


def restore(trainer: Trainer, checkpoint: SavedCheckpoint) -> None:
    """Restore the state that `checkpoint_of` captured.

    Raises:
        MismatchError: the checkpoint belongs to another job, other data or another model.
    """
    _check_identity(trainer, checkpoint.state)
    weights = named_weights(trainer.student)
    model, optimizer = checkpoint.tensors["model"], checkpoint.tensors["optimizer"]
    if {n: tuple(w.shape) for n, w in weights.items()} != {n: model.shape(n) for n in model}:
        raise MismatchError(
            f"{trainer.checkpoints.folder}: the checkpoint's weights are of another model"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            local(weight).copy_(model.rows(name, *row_range(weight)))
    num_writers, part = len(optimizer.paths), _part_of(trainer)
    if num_writers != part.num_parts and any("_codes." in name for name in optimizer):
        raise MismatchError(
            f"{optimizer.paths[0].parent}: holds 8-bit moments, whose scales belong to the "
            f"{num_writers} processes that wrote them; resume with the same number "
            "(training.parallel)"
        )
    optimizer.number = part.number
    optimizer.ranges = {
        f"{moment}.{name}": row_range(w) for moment in MOMENTS for name, w in weights.items()
    }
    load_optimizer_tensors(trainer.optimizer, trainer.student, optimizer)
    random = checkpoint.tensors["random"]
    random.number = trainer.world.rank
    trainer.load_random_states(random)
    state = checkpoint.state
    trainer.loader.load_state(state["loader"])
    trainer.step = trainer.saved_step = checkpoint.step
    trainer.seconds = state["seconds"]
    trainer.metrics = state["metrics"]
    trainer.spikes.load_state(state["spikes"])
    trainer.balance.load_state(state["weights"])


def _with_later_settings(saved: Mapping[str, Any], job: TrainingJob) -> dict[str, Any]:
    """Return a checkpoint's settings; those that came after it have their default."""
    fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(job)}
    later: dict[str, Any] = {
        name: fields[name]
        for name in job.identity()
        if name not in saved and fields[name] is not dataclasses.MISSING
    }
    # A default may stand for the method's own value.
    as_then = dataclasses.replace(job, **later).identity()
    return {**{name: as_then[name] for name in later}, **saved}


def _check_identity(trainer: Trainer, state: Mapping[str, Any]) -> None:
    folder = trainer.checkpoints.folder
    wanted, saved = trainer.job.identity(), _with_later_settings(state["job"], trainer.job)
    names = sorted(wanted.keys() | saved.keys())
    different = [name for name in names if wanted.get(name) != saved.get(name)]
    if different:
        name = different[0]
        raise MismatchError(
            f"{folder}: was written with another {', '.join(different)} "
            f"({name}: {saved.get(name)!r}, now {wanted.get(name)!r}); train in another work "
            f"folder, or delete {folder} to start from step 0"
        )
    environment = environment_of(trainer.device, trainer.job)
    for name, value in state["environment"].items():
        if environment.get(name) != value:
            change = f"{name} {environment.get(name)} where the checkpoint had {value}"
            log.warning(
                "resuming with %s: the last bits of the result may differ from an uninterrupted "
                "run",
                change,
            )
