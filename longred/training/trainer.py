"""One training as it stands: its models, optimizer and data, how far they are, the next step."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from longred.cost.fit import refuse_what_cannot_fit
from longred.cost.shape import shape_of
from longred.data.loader import StepLoader
from longred.errors import NonFiniteLossError
from longred.method.job import TrainingJob
from longred.method.methods import Term
from longred.models import load as models
from longred.store.artifacts import storage_errors
from longred.store.journal import JOURNAL_NAME, Journal
from longred.training import adapters
from longred.training.balance import Balance, measure
from longred.training.checkpoint import Checkpoints
from longred.training.environment import prepare
from longred.training.meter import Meter
from longred.training.not_finite import explain
from longred.training.optimizer import build_optimizer, update
from longred.training.requirements import check_machine, check_model
from longred.training.sharding import make_meshes, whole
from longred.training.spikes import SpikeGuard
from longred.training.step import (
    MicroBatch,
    Objectives,
    fixed_weights,
    micro_batches,
    term_counts,
)
from longred.training.student import load_student
from longred.training.teacher import Teacher, load_teacher
from longred.training.world import ALONE, World


class Trainer:
    """One training: models, optimizer, loader, and how far they are.

    Attributes:
        job: with the number of processes that there are.
        meshes: how they are grouped.
        step: optimizer steps that are done.
        seconds: time spent in them, over all processes that took part.
    """

    def __init__(self, job: TrainingJob, work: Path, world: World = ALONE) -> None:
        # Whatever the job says, there are as many processes as the launcher started.
        parallel = {**job.parallel, "num_processes": world.size}
        self.job = job = dataclasses.replace(job, parallel=parallel)
        self.work = work
        self.world = world
        self.step = 0
        self.seconds = 0.0
        self.metrics: dict[str, float] = {}
        self.saved_step = 0
        prepare(job)
        self.device = models.choose_device(job.device, "training.device")
        with world.together():
            self._check()
            self.loader = self._open_data()
            self.meter = self._make_meter()
        self.meshes = make_meshes(job.layout, self.device)
        with world.together():
            self.student = load_student(job, self.device, self.meshes.weights)
        with world.together():
            teacher = self._load_teacher(self.meshes.weights)
        self.objectives = Objectives(job, self.student, teacher, self.device, self.meshes.sequence)
        self.balance = Balance(
            fixed_weights(job), every_steps=job.weights_every_steps if job.weights == "auto" else 0
        )
        self.optimizer = build_optimizer(self.student, job)
        self.epochs = {
            bucket: job.num_steps * job.rows[bucket] / len(file)
            for bucket, file in self.loader.files.items()
        }
        self.spikes = SpikeGuard(spike_mads=job.spike_mads, halt_after=job.halt_after_spikes)
        self.journal = Journal(work / JOURNAL_NAME)
        self.checkpoints = Checkpoints(work / "checkpoints", keep=job.num_checkpoints, world=world)

    def _check(self) -> None:
        """Refuse what cannot work with this model on this machine, before weights are loaded.

        Raises:
            ConfigError, PreflightError: as `check_model`, `check_machine` and `check_weights`.
        """
        student = Path(self.job.student_folder)
        check_model(self.job, models.load_config(student))
        check_machine(self.job, self.device)
        if self.job.recipe.trains_adapters:
            adapters.check_weights(student, Path(self.job.teacher_folder))

    def _make_meter(self) -> Meter:
        """Plan the training's memory and FLOPs from its model's shape.

        Raises:
            PreflightError: this machine's memory cannot hold it.
        """
        shape = shape_of(models.load_config(Path(self.job.student_folder)))
        lengths = {bucket: file.block_length for bucket, file in self.loader.files.items()}
        refuse_what_cannot_fit(shape, self.job, lengths, self.device, num_here=self.world.num_here)
        return Meter(shape, self.job, lengths, self.device)

    def _open_data(self) -> StepLoader:
        job = self.job
        return StepLoader(
            Path(job.data_folder),
            rows=job.rows,
            seed=job.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            sequence_parallel=job.layout.sequence_parallel,
        )

    def _load_teacher(self, mesh: DeviceMesh | None) -> Teacher | None:
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
            is_fused=self.job.fused,
            mesh=mesh,
        )

    def train_step(self) -> Mapping[str, float]:
        """Take one optimizer step and return its metrics, written to the journal.

        Raises:
            NonFiniteLossError: before any weight is changed.
        """
        started = time.perf_counter()
        step = self.step + 1
        batches = self._batches()
        weights = self._step_weights(batches)
        losses = [self._backward(batch, weights) for batch in batches]
        grad_norm = whole(
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.job.max_grad_norm)
        )
        own = {
            term: float(
                sum(
                    loss[term] * b.shares[term]
                    for b, loss in zip(batches, losses, strict=True)
                    if term in loss
                )
            )
            for term in weights
        }
        by_term = self._total(own)
        total = sum(weights[term] * loss for term, loss in by_term.items())
        # A finite total means finite losses: an infinite or NaN term cannot be cancelled.
        if not bool(torch.isfinite(grad_norm + total)):
            raise NonFiniteLossError(explain(step, self.objectives, self.world, batches, losses))
        rate = update(self.optimizer, step, self.job)
        self.step = step
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.metrics = {
            **{term.metric: loss for term, loss in by_term.items()},
            "train/loss": total,
            "train/grad_norm": float(grad_norm),
            "train/learning_rate": rate,
            **self.meter.metrics(step, seconds, self.seconds),
        }
        if self.balance.every_steps:
            self.metrics |= {term.weight_metric: weights[term] for term in self.balance.balanced}
        spike = self.spikes.observe(step, total)
        if spike is not None:
            self.metrics["train/loss_spike"] = spike
        if self.world.is_first:
            with storage_errors(self.journal.path):
                self.journal.append(self.metrics, step=step)
        return self.metrics

    def _total(self, values: Mapping[Term, float]) -> dict[Term, float]:
        """Return the sums over all processes."""
        return dict(zip(values, self.world.sum(list(values.values())), strict=True))

    def _batches(self) -> list[MicroBatch]:
        rows = self.loader.next_step()
        rank = self.world.rank
        counts = term_counts(self.job, rows, rank=rank)
        totals = self._total({term: float(count.sum()) for term, count in counts.items()})
        return list(micro_batches(self.job, rows, counts, totals, rank=rank))

    def next_batches(self) -> list[MicroBatch]:
        """Return the micro-batches of the next step, which will read them again."""
        state = self.loader.state()
        batches = self._batches()
        self.loader.load_state(state)
        return batches

    def _step_weights(self, batches: Sequence[MicroBatch]) -> Mapping[Term, float]:
        """Return what each term of the next step is multiplied by."""
        if self.balance.is_due(self.step + 1):
            measure(self.balance, batches, self._backward, self.student.parameters())
        return self.balance.weights()

    def _backward(self, batch: MicroBatch, weights: Mapping[Term, float]) -> dict[Term, Tensor]:
        losses = self.objectives.losses(batch)
        weighted = [loss * (weights[term] * batch.shares[term]) for term, loss in losses.items()]
        torch.autograd.backward(torch.stack(weighted).sum())
        return {term: loss.detach() for term, loss in losses.items()}
