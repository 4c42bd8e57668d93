"""A trainer's state as a value: what a checkpoint is made of, and how a trainer goes on from it."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longred.errors import MismatchError
from longred.training.checkpoint import Checkpoint
from longred.training.environment import environment_of
from longred.training.optimizer import load_optimizer_tensors, named_weights, optimizer_tensors

if TYPE_CHECKING:
    from longred.training.loop import Trainer

log = logging.getLogger(__name__)


def checkpoint_of(trainer: "Trainer") -> Checkpoint:
    """Return everything that a trainer needs to go on from the step that it has finished."""
    tensors = {
        "model": {name: w.detach() for name, w in named_weights(trainer.student).items()},
        "optimizer": optimizer_tensors(trainer.optimizer, trainer.student),
        "random": _random_state(trainer.device),
    }
    state = {
        "step": trainer.step,
        "job": trainer.job.identity(),
        "loader": trainer.loader.state(),
        "seconds": trainer.seconds,
        "metrics": dict(trainer.metrics),
        "spikes": trainer.spikes.state(),
        "environment": environment_of(trainer.device),
    }
    return Checkpoint(trainer.step, tensors, state)


def restore(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Bring a trainer to where `checkpoint_of` was called.

    Raises:
        MismatchError: the checkpoint belongs to another job, other data or another model.
    """
    _check_identity(trainer, checkpoint.state)
    weights = named_weights(trainer.student)
    saved = checkpoint.tensors["model"]
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    if shapes != {name: tuple(w.shape) for name, w in saved.items()}:
        raise MismatchError(
            f"{trainer.checkpoints.folder}: the checkpoint's weights are of another model"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    load_optimizer_tensors(trainer.optimizer, trainer.student, checkpoint.tensors["optimizer"])
    torch.set_rng_state(checkpoint.tensors["random"]["cpu"])
    if trainer.device.type == "cuda" and "cuda" in checkpoint.tensors["random"]:
        torch.cuda.set_rng_state(checkpoint.tensors["random"]["cuda"])
    state = checkpoint.state
    trainer.loader.load_state(state["loader"])
    trainer.step = trainer.saved_step = checkpoint.step
    trainer.seconds = state["seconds"]
    trainer.metrics = state["metrics"]
    trainer.spikes.load_state(state["spikes"])


def _check_identity(trainer: "Trainer", state: Mapping[str, Any]) -> None:
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
    environment = environment_of(trainer.device)
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
