"""What the trainings of a run need, checked before the first stage that is made for them."""

import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from longred.config import RunConfig
from longred.errors import PreflightError
from longred.runs.scope import STAGES, Mode
from longred.store.artifacts import Store

if TYPE_CHECKING:
    from longred.runs.session import Run


def refuse_early(run: "Run", config: RunConfig) -> None:
    """Let a run refuse a training that cannot work before it makes what the training waits for.

    A run that finds all that finished, or makes a part of the pipeline without a training, is not
    refused: it may well be on another machine.
    """
    if run.store.scope.mode("training") in (Mode.MAKE, Mode.REMAKE):
        run.before_making = functools.partial(_before, config)


def _before(config: RunConfig, stage: str) -> None:
    if stage in STAGES[: STAGES.index("training")]:
        check_trainings(config, with_layers=stage in ("profiling", "selection"))


def check_trainings(config: RunConfig, *, with_layers: bool = False) -> None:
    """Refuse trainings that cannot work with their model, or on this machine.

    Where a command of the user's own starts the trainers, that may be on other machines: what they
    can do is left to the trainers.

    Args:
        config: the run's.
        with_layers: look at those alone that distil selected layers.

    Raises:
        ConfigError: the model has no place for what is asked for.
        PreflightError: memory, room on the disk, a package or a GPU is missing.
    """
    from longred.cost.fit import refuse_what_cannot_fit
    from longred.cost.memory import disk_bytes
    from longred.cost.recipe import jobs, lengths_of
    from longred.cost.shape import shape_of
    from longred.models.extension import extend_config
    from longred.models.load import choose_device, load_config, resolve_model
    from longred.training.launch import LAUNCHER
    from longred.training.machine import check_gpus, check_machine, check_model

    model = load_config(resolve_model(config.model.path, config.model.revision, weights=False))
    shape = shape_of(model)
    extensions = {w.target_window: w.extension for w in [*config.windows(), config]}
    is_here = not os.environ.get(LAUNCHER)
    for job in jobs(config, shape):
        if with_layers and not job.recipe.uses_layers():
            continue
        extension = extensions[job.target_window]
        extended = extend_config(
            model,
            method=extension.method,
            original_window=extension.original_window,
            target_window=extension.target_window,
            **extension.settings(),
        )
        check_model(job, extended)
        _check_room(Store(config.store.path).root, job.method, disk_bytes(shape, job))
        if is_here:
            device = choose_device(job.device, "training.device")
            check_machine(job, device)
            num_here = job.layout.num_processes
            if device.type == "cuda":
                check_gpus(num_here)
            lengths = lengths_of(config, job)
            refuse_what_cannot_fit(shape, job, lengths, device, num_here=num_here)


def _check_room(root: Path, method: str, disk: Mapping[str, float]) -> None:
    """Refuse a training whose checkpoints and result the store's disk has no room for."""
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, disk["checkpoints"] + disk["result"]
    if needed > free:
        raise PreflightError(
            f"store.path: checkpoints and result of {method} need {needed / 1e9:.2f} GB and "
            f"{free / 1e9:.2f} GB are free at {root}; free some space, set store.path elsewhere, "
            "keep fewer (training.num_checkpoints), or keep moments in 8 bits "
            "(training.optimizer=adamw8bit)"
        )
