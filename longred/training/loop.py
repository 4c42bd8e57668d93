"""The training loop: load, step, save."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
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
    on_batch: Callable[[int, int, int], None] = lambda step, done, total: None,
    stop_requested: Callable[[], int | None] = lambda: None,
    world: World = ALONE,
) -> Path:
    """Train the student of a job, resuming from the newest checkpoint in the work folder.

    Args:
        job: what to train.
        work: folder for checkpoints, the journal and the result; one trainer at a time.
        on_step: called after every optimizer step with its number, from 1, and its metrics.
        on_batch: called before every micro-batch with the number of finished steps, and of finished
            micro-batches and all in the step in progress.
        stop_requested: called before every micro-batch and after the last step; a signal number
            ends the training, without the step in progress.
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

    def check(done: int, total: int) -> None:
        leave_if(stop_requested(), world)
        on_batch(trainer.step, done, total)

    trainer = Trainer(job, work, world)
    load(trainer)
    saved = time.monotonic()
    while trainer.step < job.num_steps:
        with saved_if_stopped(trainer):
            leave_if(stop_requested(), world)
            metrics = trainer.train_step(check)
        on_step(trainer.step, metrics)
        leave_if_spiking(trainer)
        keep_student(trainer)
        # The processes of a training decide together, since their clocks differ.
        is_late = world.max(time.monotonic() - saved >= job.save_every_seconds)
        if is_late or trainer.step % job.save_every_steps == 0:
            save(trainer)
            saved = time.monotonic()
    with saved_if_stopped(trainer):
        leave_if(stop_requested(), world)
    save(trainer)
    return write_result(trainer)


def leave_if(signal_number: int | None, world: World) -> None:
    """Raise in all processes if this one or another one received a signal.

    Raises:
        Stopped: one did.
    """
    received = world.max(signal_number or 0)
    if received:
        raise Stopped(received)


@contextlib.contextmanager
def saved_if_stopped(trainer: Trainer) -> Iterator[None]:
    """Save the last finished step if a stop leaves the block."""
    try:
        yield
    except Stopped:
        save(trainer)
        raise


def leave_if_spiking(trainer: Trainer) -> None:
    """Raise, without saving, if the loss spiked in too many consecutive steps.

    Raises:
        LossSpikeError: it did.
    """
    problem = trainer.spikes.problem(trainer.step, trainer.saved_step)
    if problem:
        raise LossSpikeError(problem)
