"""The state of one training and its optimizer step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from longred.cost.fit import refuse_what_cannot_fit
from longred.cost.shape import shape_of
from longred.data.loader import StepLoader
from longred.errors import NonFiniteLossError, Stopped
from longred.method.job import TrainingJob
from longred.method.methods import Term
from longred.models import load as models
from longred.store.artifacts import storage_errors
from longred.store.journal import JOURNAL_NAME, Journal
from longred.training import adapters, handshake
from longred.training.balance import Balance, measure
from longred.training.checkpoint import Checkpoints
from longred.training.checks import SpikeGuard, explain_non_finite
from longred.training.load import load_student, load_teacher, teacher_of_adapters
from longred.training.machine import Meter, check_machine, check_model, prepare
from longred.training.optimizer import build_optimizer, update
from longred.training.sharding import make_meshes, whole
from longred.training.step import (
    MicroBatch,
    Objectives,
    Teacher,
    fixed_weights,
    micro_batches,
    term_counts,
)
from longred.training.world import ALONE, World


class Trainer:
    """One training: models, optimizer, loader and progress.

    Attributes:
        job: the job, with the actual number of processes.
        meshes: the groups of processes.
        step: number of finished optimizer steps.
        seconds: time spent in them.
    """

    def __init__(self, job: TrainingJob, work: Path, world: World = ALONE) -> None:
        # The launcher decides the number of processes, whatever the job says.
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
        student, original = Path(job.student_folder), Path(job.teacher_folder)
        with world.together():
            extended = models.load_config(student)
            check_model(job, extended)
            check_machine(job, self.device)
            if job.recipe.trains_adapters:
                adapters.check_weights(student, original)
            # Methods without a teacher do without the original's folder.
            is_there = job.uses_teacher() or (original / "config.json").is_file()
            handshake.require(
                original if is_there else student,
                extended,
                device=self.device,
                backend=job.attention_backend,
                dtype=getattr(torch, job.dtype),
                start=student,
            )
            self.loader = StepLoader(
                Path(job.data_folder),
                rows=job.rows,
                seed=job.seed,
                rank=world.rank,
                world_size=world.size,
                sequence_parallel=job.layout.sequence_parallel,
            )
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

    def _make_meter(self) -> Meter:
        """Check that the training fits this machine's memory; return its meter.

        Raises:
            PreflightError: it does not fit.
        """
        shape = shape_of(models.load_config(Path(self.job.student_folder)))
        lengths = {bucket: file.block_length for bucket, file in self.loader.files.items()}
        refuse_what_cannot_fit(
            shape, [(self.job, lengths)], self.device, num_here=self.world.num_here
        )
        return Meter(shape, self.job, lengths, self.device)

    def _load_teacher(self, mesh: DeviceMesh | None) -> Teacher | None:
        if not self.job.uses_teacher():
            return None
        original = Path(self.job.teacher_folder)
        if self.job.recipe.trains_adapters:
            return teacher_of_adapters(self.student, original)
        # Never a submodule of the student: it must not reach the optimizer or a checkpoint.
        return load_teacher(
            original,
            dtype=self.job.dtype,
            device=self.device,
            backend=self.job.attention_backend,
            is_fused=self.job.fused,
            keeps_head=self.job.compares_logits(),
            mesh=mesh,
        )

    def train_step(
        self, check: Callable[[int, int], None] = lambda done, total: None
    ) -> Mapping[str, float]:
        """Take one optimizer step, append its metrics to the journal and return them.

        Args:
            check: called before each micro-batch with the number of finished ones and of all, at
                the same ones in all processes; raises `Stopped` in all of them to drop the step.

        Raises:
            NonFiniteLossError: before any weight is changed.
            Stopped: by `check`; the trainer is as it was after the last finished step.
        """
        started = time.perf_counter()
        step = self.step + 1

        losses: list[dict[Term, Tensor]] = []

        def backward(batch: MicroBatch, weights: Mapping[Term, float]) -> dict[Term, Tensor]:
            check(len(losses), len(batches))
            return self._backward(batch, weights)

        with self._dropped_if_stopped():
            batches = self._batches()
            if self.balance.is_due(step):
                measure(self.balance, batches, backward, self.student.parameters())
            weights = self.balance.weights()
            for batch in batches:
                losses.append(backward(batch, weights))
        grad_norm = whole(
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.job.max_grad_norm)
        )
        pairs = list(zip(batches, losses, strict=True))
        by_term = self._total(
            {
                term: float(sum(loss[term] * b.shares[term] for b, loss in pairs if term in loss))
                for term in weights
            }
        )
        total = sum(weights[term] * loss for term, loss in by_term.items())
        # A finite total means finite losses: infinite and NaN terms cannot cancel.
        if not bool(torch.isfinite(grad_norm + total)):
            raise NonFiniteLossError(
                explain_non_finite(step, self.objectives, self.world, batches, losses)
            )
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

    @contextlib.contextmanager
    def _dropped_if_stopped(self) -> Iterator[None]:
        """Undo what the passes of a step change besides gradients, if a stop leaves the block."""
        loader, balance, random = self.loader.state(), self.balance.state(), self.random_states()
        try:
            yield
        except Stopped:
            self.optimizer.zero_grad(set_to_none=True)
            self.loader.load_state(loader)
            self.balance.load_state(balance)
            self.load_random_states(random)
            raise

    def random_states(self) -> dict[str, Tensor]:
        """Return the state of each random generator by kind of device."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state()
        return states

    def load_random_states(self, states: Mapping[str, Tensor]) -> None:
        """Restore what `random_states` returned; a state of a device not in use is ignored."""
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])

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
        """Return the micro-batches of the next step without advancing the loader."""
        state = self.loader.state()
        batches = self._batches()
        self.loader.load_state(state)
        return batches

    def _backward(self, batch: MicroBatch, weights: Mapping[Term, float]) -> dict[Term, Tensor]:
        """Run a micro-batch forward and backward; return its losses."""
        losses = self.objectives.losses(batch)
        weighted = [loss * (weights[term] * batch.shares[term]) for term, loss in losses.items()]
        torch.autograd.backward(torch.stack(weighted).sum())
        return {term: loss.detach() for term, loss in losses.items()}
