"""What a trainer's checkpoint is made of, when it is saved, and how a trainer goes on from it."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from longred.errors import MismatchError
from longred.store.artifacts import storage_errors
from longred.training.checkpoint import Checkpoint, SavedCheckpoint
from longred.training.environment import environment_of
from longred.training.fp8_quality import check_fp8_quality
from longred.training.optimizer import (
    MOMENTS,
    checkpoint_bytes,
    load_optimizer_tensors,
    named_weights,
    optimizer_tensors,
)
from longred.training.sharding import local, rows_of
from longred.training.tensor_files import Part, SavedTensors
from longred.training.trainer import Trainer

log = logging.getLogger(__name__)

_OTHER_BYTES = 2**20
"""Of what lies beside the tensors of a checkpoint or a model."""


def save(trainer: Trainer) -> None:
    """Commit a checkpoint of the step that is done, unless there is one.

    Raises:
        StorageError: the disk is full; older checkpoints are intact.
    """
    if trainer.step == trainer.saved_step:
        return
    # The journal first: a checkpoint must never know steps that the journal lost.
    with trainer.world.together(), storage_errors(trainer.journal.path):
        trainer.journal.flush()
    trainer.checkpoints.save(checkpoint_of(trainer))
    trainer.saved_step = trainer.step
    log.info("saved step %d of %d", trainer.step, trainer.job.num_steps)


def load(trainer: Trainer) -> None:
    """Go on from the newest whole checkpoint, or start at step 0 where none was ever saved.

    Raises:
        MismatchError: every checkpoint is damaged, or it belongs to another job or other data.
        PreflightError: the disk has no room for the next checkpoint, or 8-bit floats are not
            exact enough.
    """
    checkpoint = trainer.checkpoints.newest()
    if checkpoint is not None:
        restore(trainer, checkpoint)
    with trainer.world.together():
        if trainer.world.is_first:
            _prepare_work(trainer)
    if trainer.job.fp8:
        batches = trainer.next_batches()
        with trainer.world.together():
            check_fp8_quality(trainer.objectives, batches)


def _prepare_work(trainer: Trainer) -> None:
    job = trainer.job
    trainer.journal.truncate_after(trainer.step)
    if trainer.step < job.num_steps:
        # The result and every student that is kept are whole models in float32.
        num_models = 1 + sum(step > trainer.step for step in job.keep_steps)
        one = 4 * sum(weight.numel() for weight in trainer.student.parameters())
        trainer.checkpoints.require_space(
            checkpoint_bytes(trainer.optimizer, trainer.student) + _OTHER_BYTES,
            result_bytes=num_models * (one + _OTHER_BYTES),
        )
    repeated = {bucket: epochs for bucket, epochs in trainer.epochs.items() if epochs > 1}
    if repeated:
        log.warning("%s: reads blocks more than once, in epochs: %s", job.method, repeated)
    log.info("%s: starting after step %d of %d", job.method, trainer.step, job.num_steps)


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """Return everything that a trainer needs to go on from the step that it has finished."""
    weights = named_weights(trainer.student)
    tensors = {
        "model": {name: local(w.detach()) for name, w in weights.items()},
        "optimizer": optimizer_tensors(trainer.optimizer, trainer.student),
        "random": _random_state(trainer.device),
    }
    world = trainer.world
    divided = _divided(trainer)
    rows = {name: rows_of(w) for name, w in weights.items()}
    parts = {
        "model": replace(divided, rows=rows),
        "optimizer": replace(
            divided, rows={f"{moment}.{name}": r for moment in MOMENTS for name, r in rows.items()}
        ),
        "random": Part(world.rank, world.size),
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


def _divided(trainer: Trainer) -> Part:
    """Return which of the parts that the weights are divided into this process holds."""
    mesh = trainer.meshes.weights
    if mesh is None:
        return Part()
    last = mesh.ndim - 1
    is_written = mesh.ndim == 1 or mesh.get_local_rank(0) == 0
    return Part(mesh.get_local_rank(last), mesh.size(last), is_written=is_written)


def restore(trainer: Trainer, checkpoint: SavedCheckpoint) -> None:
    """Bring a trainer to where `checkpoint_of` was called.

    Raises:
        MismatchError: the checkpoint belongs to another job, other data or another model.
    """
    _check_identity(trainer, checkpoint.state)
    weights = named_weights(trainer.student)
    saved = {stem: _OwnPart(group, trainer) for stem, group in checkpoint.tensors.items()}
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    if shapes != {name: saved["model"].group.shape(name) for name in saved["model"]}:
        raise MismatchError(
            f"{trainer.checkpoints.folder}: the checkpoint's weights are of another model"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            local(weight).copy_(saved["model"][name])
    load_optimizer_tensors(trainer.optimizer, trainer.student, saved["optimizer"])
    random, rank = checkpoint.tensors["random"], trainer.world.rank
    torch.set_rng_state(random.own("cpu", rank))
    if trainer.device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random.own("cuda", rank))
    state = checkpoint.state
    trainer.loader.load_state(state["loader"])
    trainer.step = trainer.saved_step = checkpoint.step
    trainer.seconds = state["seconds"]
    trainer.metrics = state["metrics"]
    trainer.spikes.load_state(state["spikes"])
    trainer.balance.load_state(state["weights"])


class _OwnPart(Mapping[str, Tensor]):
    """A saved group of tensors as this process holds it: its rows, whoever wrote them."""

    def __init__(self, group: SavedTensors, trainer: Trainer) -> None:
        self.group = group
        self.part = _divided(trainer)
        self.weights = named_weights(trainer.student)

    def __iter__(self) -> Iterator[str]:
        return iter(self.group)

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, name: str) -> Tensor:
        kind, _, of = name.partition(".")
        if name in self.weights or kind in MOMENTS:
            weight = self.weights[name if name in self.weights else of]
            start = rows_of(weight).start
            return self.group.rows(name, start, start + len(local(weight)))
        if kind != "step" and len(self.group.paths) != self.part.count:
            raise MismatchError(
                f"{self.group.paths[0].parent}: holds 8-bit moments, whose scales belong to the "
                f"{len(self.group.paths)} processes that wrote them; go on with as many "
                "(training.parallel)"
            )
        return self.group.own(name, self.part.number)


def _check_identity(trainer: Trainer, state: Mapping[str, Any]) -> None:
    folder = trainer.checkpoints.folder
    wanted, saved = trainer.job.identity(), state["job"]
    different = sorted(
        name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name)
    )
    if different:
        name = different[0]
        raise MismatchError(
            f"{folder}: was made with another {', '.join(different)} "
            f"({name}: {saved.get(name)!r}, now {wanted.get(name)!r}); train in another work "
            f"folder, or delete {folder} to start from step 0"
        )
    environment = environment_of(trainer.device, trainer.job)
    for name, value in state["environment"].items():
        if environment.get(name) != value:
            log.warning(
                "resuming with %s %s where the checkpoint had %s: the last bits of the result "
                "may differ from an uninterrupted run",
                name,
                environment.get(name),
                value,
            )


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state
