"""The training loop: load, step, save."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longred import models
from longred.activations import checkpoint_activations
from longred.artifacts import storage_errors, write_json
from longred.data.loader import StepLoader
from longred.errors import ConfigError, MismatchError, NonFiniteLossError, Stopped
from longred.methods import Term
from longred.tracking import JOURNAL_NAME, Journal
from longred.training import adapters
from longred.training.checkpoint import Checkpoint, Checkpoints
from longred.training.environment import environment_of
from longred.training.job import TrainingJob
from longred.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    named_weights,
    optimizer_tensors,
    update,
)
from longred.training.step import (
    MicroBatch,
    Objectives,
    fixed_weights,
    micro_batches,
    term_counts,
)
from longred.training.teacher import Teacher, load_teacher

log = logging.getLogger(__name__)

OnStep = Callable[[int, Mapping[str, float]], None]
StopRequested = Callable[[], int | None]


def train(
    job: TrainingJob,
    work: Path,
    *,
    on_step: OnStep = lambda step, metrics: None,
    stop_requested: StopRequested = lambda: None,
) -> Path:
    """Train the student of a job, going on from the newest checkpoint in the work folder.

    Args:
        job: what to train.
        work: folder for checkpoints, the journal and the result; one trainer at a time.
        on_step: called after every optimizer step with its number, from 1, and its metrics.
        stop_requested: asked before and after every step; a signal number ends the training.

    Returns:
        `work/result`: a Hugging Face folder with `training.json` and `metrics.jsonl`.

    Raises:
        NonFiniteLossError: a loss or gradient is NaN or infinite; no weight has been changed by it.
        Stopped: `stop_requested` returned a signal; progress is saved.
        MismatchError: the checkpoints are damaged or belong to another job or other data.
        PreflightError: the disk has no room for a checkpoint.
        StorageError: saving failed; older checkpoints are intact.
    """
    trainer = Trainer(job, work)
    trainer.load()
    while trainer.step < job.num_steps:
        trainer.leave_if(stop_requested())
        metrics = trainer.train_step()
        on_step(trainer.step, metrics)
        if trainer.step % job.save_every_steps == 0:
            trainer.save()
    trainer.leave_if(stop_requested())
    trainer.save()
    return trainer.write_result()


class Trainer:
    """One training: models, optimizer, loader, and how far they are.

    Attributes:
        step: optimizer steps that are done.
        seconds: time spent in them, over all processes that took part.
    """

    def __init__(self, job: TrainingJob, work: Path) -> None:
        self.job = job
        self.work = work
        self.step = 0
        self.seconds = 0.0
        self.metrics: Mapping[str, float] = {}
        self.saved_step = 0
        if job.num_threads:
            torch.set_num_threads(job.num_threads)
        torch.manual_seed(job.seed)
        self.device = models.choose_device(job.device)
        self._check()
        self.student = models.load_model(
            Path(job.student_folder),
            dtype=torch.float32,
            device=self.device,
            original=Path(job.teacher_folder),
            backend=job.attention_backend,
            compute_dtype=getattr(torch, job.dtype),
        )
        if job.recipe.trains_adapters:
            adapters.add_adapters(self.student, job.lora, dtype=job.dtype)
        self.student.train()
        checkpoint_activations(self.student, job.activation_checkpointing)
        self.objectives = Objectives(job, self.student, self._load_teacher(), self.device)
        self.weights = fixed_weights(job)
        self.optimizer = build_optimizer(self.student, job)
        self.loader = StepLoader(Path(job.data_folder), rows=job.rows, seed=job.seed)
        lengths = {bucket: file.block_length for bucket, file in self.loader.files.items()}
        self.step_tokens = sum(count * lengths[bucket] for bucket, count in job.rows.items())
        self.epochs = {
            bucket: job.num_steps * job.rows[bucket] / len(file)
            for bucket, file in self.loader.files.items()
        }
        self.journal = Journal(work / JOURNAL_NAME)
        self.checkpoints = Checkpoints(work / "checkpoints", keep=job.num_checkpoints)

    def _check(self) -> None:
        """Refuse what the model has no place for, before its weights are loaded.

        Raises:
            ConfigError: a distilled layer or an adapter's target does not exist.
        """
        job, student = self.job, Path(self.job.student_folder)
        num_layers = models.load_config(student).num_hidden_layers
        wrong = [layer for layer in job.distill_layers if not 1 <= layer <= num_layers]
        if wrong:
            raise ConfigError(
                f"training.distill_layers: {wrong} are not in 1 to {num_layers}, the model's "
                "hidden states; choose others in selection.layers"
            )
        if job.recipe.trains_adapters:
            adapters.check_adapters(job.lora, student, Path(job.teacher_folder))

    def _load_teacher(self) -> Teacher | None:
        if not self.job.uses_teacher():
            return None
        if self.job.recipe.trains_adapters:
            return adapters.without_adapters(self.student, Path(self.job.teacher_folder))
        # Never a submodule of the student: it must not reach the optimizer or a checkpoint.
        return load_teacher(
            Path(self.job.teacher_folder),
            dtype=self.job.dtype,
            device=self.device,
            backend=self.job.attention_backend,
        )

    def train_step(self) -> Mapping[str, float]:
        """Take one optimizer step and return its metrics, written to the journal.

        Raises:
            NonFiniteLossError: before any weight is changed.
        """
        started = time.perf_counter()
        step = self.step + 1
        rows = self.loader.next_step()
        counts = term_counts(self.job, rows)
        totals = {term: float(count.sum()) for term, count in counts.items()}
        batches = list(micro_batches(self.job, rows, counts, totals))
        weights = self._step_weights()
        losses = [self._backward(batch, weights) for batch in batches]
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.student.parameters(), self.job.max_grad_norm
        )
        by_term = {
            term: float(
                sum(
                    loss[term] * b.shares[term]
                    for b, loss in zip(batches, losses, strict=True)
                    if term in loss
                )
            )
            for term in weights
        }
        total = sum(weights[term] * loss for term, loss in by_term.items())
        # A finite total means finite losses: an infinite or NaN term cannot be cancelled.
        if not bool(torch.isfinite(grad_norm + total)):
            raise NonFiniteLossError(self._explain(step, batches, losses))
        rate = update(self.optimizer, step, self.job)
        self.step = step
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.metrics = {
            **{term.metric: loss for term, loss in by_term.items()},
            "train/loss": total,
            "train/grad_norm": float(grad_norm),
            "train/learning_rate": rate,
            "train/tokens_per_second": self.step_tokens / seconds,
        }
        with storage_errors(self.journal.path):
            self.journal.append(self.metrics, step=step)
        return self.metrics

    def _step_weights(self) -> Mapping[Term, float]:
        """Return what each term of the next step is multiplied by."""
        return self.weights

    def _backward(self, batch: MicroBatch, weights: Mapping[Term, float]) -> dict[Term, Tensor]:
        losses = self.objectives.losses(batch)
        weighted = [loss * (weights[term] * batch.shares[term]) for term, loss in losses.items()]
        torch.autograd.backward(torch.stack(weighted).sum())
        return {term: loss.detach() for term, loss in losses.items()}

    def _explain(
        self, step: int, batches: list[MicroBatch], losses: list[dict[Term, Tensor]]
    ) -> str:
        """Name the first micro-batch whose loss, or whose gradient taken alone, is not finite."""
        for batch, by_term in zip(batches, losses, strict=True):
            for term, loss in by_term.items():
                what = self._what_is_not_finite(batch, term, loss)
                if what:
                    return (
                        f"step {step}: the {batch.bucket} bucket's {what} on blocks "
                        f"{batch.block_ids} ({self.objectives.where_not_finite(batch)}). No weight "
                        "was changed by this step; lower training.learning_rate, raise "
                        "training.warmup_steps, or look at these blocks"
                    )
        return (
            f"step {step}: the gradient norm overflowed though every micro-batch's gradient is "
            "finite; lower training.learning_rate"
        )

    def _what_is_not_finite(self, batch: MicroBatch, term: Term, loss: Tensor) -> str | None:
        if not bool(torch.isfinite(loss)):
            return f"{term.objective} loss is {float(loss)}"
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.objectives.losses(batch)[term] * batch.shares[term])
        grads = [w.grad for w in named_weights(self.student).values() if w.grad is not None]
        if all(bool(torch.isfinite(grad).all()) for grad in grads):
            return None
        return f"{term.objective} gradient is not finite (its loss is {float(loss)})"

    def leave_if(self, signal_number: int | None) -> None:
        """Save and end where a signal asked for it.

        Raises:
            Stopped: it did.
        """
        if signal_number is not None:
            self.save()
            raise Stopped(signal_number)

    def save(self) -> None:
        """Commit a checkpoint of the current step, unless there is one.

        Raises:
            StorageError: the disk is full; older checkpoints are intact.
        """
        if self.step == self.saved_step:
            return
        # The journal first: a checkpoint must never know steps that the journal lost.
        with storage_errors(self.journal.path):
            self.journal.flush()
        tensors = {
            "model": {name: w.detach() for name, w in named_weights(self.student).items()},
            "optimizer": optimizer_tensors(self.optimizer, self.student),
            "random": self._random_state(),
        }
        self.checkpoints.save(Checkpoint(self.step, tensors, self._state()))
        self.saved_step = self.step
        log.info("saved step %d of %d", self.step, self.job.num_steps)

    def load(self) -> None:
        """Go on from the newest whole checkpoint, or start at step 0 where none was ever saved.

        Raises:
            MismatchError: every checkpoint is damaged, or it belongs to another job or other data.
            PreflightError: the disk has no room for the next checkpoint.
        """
        checkpoint = self.checkpoints.newest()
        if checkpoint is not None:
            self._check_identity(checkpoint.state)
            self._restore(checkpoint)
        self.journal.truncate_after(self.step)
        weight_bytes = sum(
            w.numel() * w.element_size() for w in named_weights(self.student).values()
        )
        if self.step < self.job.num_steps:
            # A checkpoint holds weights and two moments; the result holds the weights once more.
            self.checkpoints.require_space(
                3 * weight_bytes + 2**20, result_bytes=weight_bytes + 2**20
            )
        repeated = {bucket: epochs for bucket, epochs in self.epochs.items() if epochs > 1}
        if repeated:
            log.warning("%s: reads blocks more than once, in epochs: %s", self.job.method, repeated)
        log.info("%s: starting after step %d of %d", self.job.method, self.step, self.job.num_steps)

    def _restore(self, checkpoint: Checkpoint) -> None:
        weights = named_weights(self.student)
        saved = checkpoint.tensors["model"]
        shapes = {name: tuple(w.shape) for name, w in weights.items()}
        if shapes != {name: tuple(w.shape) for name, w in saved.items()}:
            raise MismatchError(
                f"{self.checkpoints.folder}: the checkpoint's weights are of another model"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])
        load_optimizer_tensors(self.optimizer, self.student, checkpoint.tensors["optimizer"])
        torch.set_rng_state(checkpoint.tensors["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in checkpoint.tensors["random"]:
            torch.cuda.set_rng_state(checkpoint.tensors["random"]["cuda"])
        state = checkpoint.state
        self.loader.load_state(state["loader"])
        self.step = self.saved_step = checkpoint.step
        self.seconds = state["seconds"]
        self.metrics = state["metrics"]

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        wanted, saved = self.job.identity(), state["job"]
        different = sorted(
            name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name)
        )
        if different:
            name = different[0]
            raise MismatchError(
                f"{self.checkpoints.folder}: was made with another {', '.join(different)} "
                f"({name}: {saved.get(name)!r}, now {wanted.get(name)!r}); train in another work "
                f"folder, or delete {self.checkpoints.folder} to start from step 0"
            )
        environment = environment_of(self.device)
        for name, value in state["environment"].items():
            if environment.get(name) != value:
                log.warning(
                    "resuming with %s %s where the checkpoint had %s: the last bits of the result "
                    "may differ from an uninterrupted run",
                    name,
                    environment.get(name),
                    value,
                )

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "job": self.job.identity(),
            "loader": self.loader.state(),
            "seconds": self.seconds,
            "metrics": dict(self.metrics),
            "environment": environment_of(self.device),
        }

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def write_result(self) -> Path:
        """Write the trained student as a Hugging Face folder, with its summary and journal.

        Raises:
            StorageError: the disk is full; the last checkpoint is intact.
        """
        result, temporary = self.work / "result", self.work / ".tmp-result"
        self.journal.close()
        with storage_errors(result):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._write_model(temporary)
            shutil.copyfile(self.journal.path, temporary / JOURNAL_NAME)
            write_json(temporary / "training.json", self._summary())
            shutil.rmtree(result, ignore_errors=True)
            temporary.rename(result)
        return result

    def _write_model(self, folder: Path) -> None:
        student, original = Path(self.job.student_folder), Path(self.job.teacher_folder)
        model = self.student
        if self.job.recipe.trains_adapters:
            model = adapters.merged(self.student, student, original)
            adapters.save_adapters(self.student, folder / adapters.ADAPTERS_NAME)
        models.save_model(model, student, folder)

    def _summary(self) -> dict[str, Any]:
        tokens = self.step * self.step_tokens
        return {
            "method": self.job.method,
            "rows": dict(self.job.rows),
            "num_steps": self.step,
            "tokens": tokens,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "tokens_per_second": tokens / self.seconds,
            "final": dict(self.metrics),
            "distill_layers": list(self.job.distill_layers),
            "loss_weights": {term.metric: weight for term, weight in self.weights.items()},
            "num_threads": torch.get_num_threads(),
            "environment": environment_of(self.device),
            "job": self.job.to_json(),
        }
