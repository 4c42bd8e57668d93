"""Train one student with the trainer, and write its folder."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from gpu.child import Check
from gpu.sizes import speeds_of

from longred.cost.machine import peak_bytes
from longred.cost.plan import plan_training
from longred.cost.speeds import key_of
from longred.method.job import TrainingJob
from longred.training.result import write_result
from longred.training.trainer import Trainer
from real.inputs import Inputs

WARM_UP = 2
"""First steps, which compile and allocate; they do not count in the speed."""
SHOWN_STEPS = 50
"""Most steps whose losses a line holds."""


def measure(check: Check, folder: str, method: str, num_steps: int, budget_seconds: float) -> None:
    """Train until `num_steps`, or until the time is used up.

    Args:
        check: writes the line.
        folder: the prepared folder.
        method: a training method.
        num_steps: most steps; the learning rate stays constant after its warm-up, so that fewer
            steps are the beginning of more.
        budget_seconds: no step begins later than this after the first ones; 0 for no limit.
    """
    inputs = Inputs(Path(folder))
    layers = check.found.get("profile/layers")
    changes: dict[str, Any] = {"num_steps": num_steps}
    if inputs.jobs()[method].recipe.uses_layers():
        if layers is None:
            raise RuntimeError("needs the measurement profile/layers, which is missing")
        changes["distill_layers"] = layers["measured"]["distill_layers"]
    job = inputs.job(check, method, **changes)
    work = inputs.training(method)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trainer = Trainer(job, work)
    history, started = [], time.monotonic()
    while trainer.step < num_steps:
        if trainer.step <= WARM_UP:
            started = time.monotonic()
        elif budget_seconds and time.monotonic() - started > budget_seconds:
            break
        before = time.perf_counter()
        metrics = dict(trainer.train_step())
        history.append((time.perf_counter() - before, metrics))
    write_result(trainer)
    _write(check, inputs, job, trainer, history)


def _write(
    check: Check,
    inputs: Inputs,
    job: TrainingJob,
    trainer: Trainer,
    history: list[tuple[float, dict[str, float]]],
) -> None:
    times = sorted(seconds for seconds, _ in history[WARM_UP:] or history)
    seconds = times[len(times) // 2]
    every = -(-len(history) // SHOWN_STEPS)
    losses = {
        key.removeprefix("train/"): [round(metrics[key], 5) for _, metrics in history[::every]]
        for key in history[0][1]
        if key.endswith("_loss") or key == "train/loss"
    }
    planned = {}
    if not check.tiny and key_of(torch.cuda.get_device_name()):
        plan = plan_training(inputs.shape, job, inputs.row_lengths, speeds_of(check))
        planned = {"seconds": plan.step_seconds, "peak_bytes": plan.memory_bytes}
    check.line(
        "steps",
        settings={
            "method": job.method,
            "rows": dict(job.rows),
            "learning_rate": job.learning_rate,
            "distill_layers": list(job.distill_layers),
            "dtype": job.dtype,
        },
        measured={
            "num_steps": len(history),
            "seconds": seconds,
            "first_seconds": history[0][0],
            "tokens_per_second": trainer.meter.step_tokens / seconds,
            "peak_bytes": peak_bytes(trainer.device),
            **{f"last_{key}": values[-1] for key, values in losses.items()},
        },
        planned=planned,
        losses=losses,
        epochs=trainer.epochs,
    )
