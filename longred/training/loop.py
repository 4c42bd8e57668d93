"""The training loop: load, step, save."""

from collections.abc import Callable, Mapping
from pathlib import Path

from longred.errors import LossSpikeError, Stopped
from longred.method.job import TrainingJob
from longred.training.persistence import load, save
from longred.training.result import keep_student, write_result
from longred.training.trainer import Trainer
from longred.training.world import ALONE, World


def train(
    job: TrainingJob,
    work: Path,
    *,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    stop_requested: Callable[[], int | None] = lambda: None,
    world: World = ALONE,
) -> Path:
    """Train the student of a job, resuming from the newest checkpoint in the work folder.

    Args:
        job: what to train.
        work: folder for checkpoints, the journal and the result; one trainer at a time.
        on_step: called after every optimizer step with its number, from 1, and its metrics.
        stop_requested: called before every step and after the last one; a signal number ends the
            training.
        world: the processes that train together; each of them calls this function.

    Returns:
        `work/result`: a Hugging Face folder with `training.json` and `metrics.jsonl`.

    Raises:
        NonFiniteLossError: a loss or gradient is NaN or infinite; no weight was changed by it.
        LossSpikeError: the loss spiked in several consecutive steps; the last is not saved.
        Stopped: `stop_requested` returned a signal; progress is saved.
        MismatchError: the checkpoints are damaged or belong to another job or other data.
        PreflightError: the disk has no room for a checkpoint.
        StorageError: saving failed; older checkpoints are intact.
    """
    trainer = Trainer(job, work, world)
    load(trainer)
    while trainer.step < job.num_steps:
        leave_if(stop_requested(), trainer)
        metrics = trainer.train_step()
        on_step(trainer.step, metrics)
        leave_if_spiking(trainer)
        keep_student(trainer)
        if trainer.step % job.save_every_steps == 0:
            save(trainer)
    leave_if(stop_requested(), trainer)
    save(trainer)
    return write_result(trainer)


def leave_if(signal_number: int | None, trainer: Trainer) -> None:
    """Save and raise if this process or another one received a signal.

    Raises:
        Stopped: one did.
    """
    signal_number = max(trainer.world.gather(signal_number or 0))
    if signal_number:
        save(trainer)
        raise Stopped(signal_number)


def leave_if_spiking(trainer: Trainer) -> None:
    """Raise, without saving, if the loss spiked in too many consecutive steps.

    Raises:
        LossSpikeError: it did.
    """
    problem = trainer.spikes.problem(trainer.step, trainer.saved_step)
    if problem:
        raise LossSpikeError(problem)
