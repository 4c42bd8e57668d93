"""Checks of a run's trainings, before the first stage that they depend on is built."""

import os
import shutil
from typing import TYPE_CHECKING

from longred.config import RunConfig
from longred.errors import PreflightError
from longred.runs.scope import STAGES, Mode
from longred.store.artifacts import Store, existing_folder

if TYPE_CHECKING:
    from longred.runs.session import Run


def refuse_early(run: "Run", config: RunConfig) -> None:
    """Make a run check its trainings before it builds anything that they depend on.

    A run that builds nothing before its trainings, or whose scope has no training, is not checked:
    it may be on another machine.
    """

    def check(stage: str) -> None:
        if stage in STAGES[: STAGES.index("training")]:
            check_trainings(config, with_layers=stage in ("profiling", "selection"))

    if run.store.scope.mode("training") in (Mode.MAKE, Mode.REMAKE):
        run.store.before_build = check


def check_trainings(config: RunConfig, *, with_layers: bool = False) -> None:
    """Refuse trainings that cannot work with their model or on this machine.

    If the user's own command starts the trainers, they may run on other machines, and the trainers
    check those themselves.

    Args:
        config: settings of the run.
        with_layers: check only trainings that distil selected layers.

    Raises:
        ConfigError: the model does not support a setting.
        PreflightError: memory, disk space, a package or a GPU is missing.
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
    root = Store(config.store.path).root
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
        disk = disk_bytes(shape, job)
        needed = disk["checkpoints"] + disk["result"]
        free = shutil.disk_usage(existing_folder(root)).free
        if needed > free:
            raise PreflightError(
                f"store.path: checkpoints and result of {job.method} need {needed / 1e9:.2f} GB "
                f"and {free / 1e9:.2f} GB are free at {root}; free some space, set store.path "
                "elsewhere, keep fewer (training.num_checkpoints), or keep moments in 8 bits "
                "(training.optimizer=adamw8bit)"
            )
        if is_here:
            device = choose_device(job.device, "training.device")
            check_machine(job, device)
            num_here = job.layout.num_processes
            if device.type == "cuda":
                check_gpus(num_here)
            lengths = lengths_of(config, job)
            refuse_what_cannot_fit(shape, job, lengths, device, num_here=num_here)
