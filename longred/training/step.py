"""The losses of one optimizer step: micro-batches, each bucket's objective, words about a NaN.

Shapes: B rows, T tokens of a row, D hidden size.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longred import models, objectives, positions
from longred.data.loader import Rows
from longred.training.job import TrainingJob

METRIC_KEYS = {
    ("long", "cross_entropy"): "train/long_loss",
    ("short", "distill"): "train/short_distill_loss",
    ("original", "distill"): "train/short_to_long_loss",
    ("short", "cross_entropy"): "train/short_loss",
    ("original", "cross_entropy"): "train/original_loss",
}
"""Metric key of each bucket's loss, by the bucket's objective."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward and backward.

    Attributes:
        bucket: the bucket that the rows are from.
        input_ids_BT: token ids.
        document_ids_BT: document of every token, or None where rows are whole.
        position_ids_BT: the student's positions, or None for 0…T-1.
        block_ids: the rows' blocks in the bucket's file, for messages.
        share: part of the bucket's mean that these rows are; the shares of a bucket sum to 1.
    """

    bucket: str
    input_ids_BT: Tensor
    document_ids_BT: Tensor | None
    position_ids_BT: Tensor | None
    block_ids: list[int]
    share: float

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the micro-batch with its tensors on a device."""
        documents, skipped = self.document_ids_BT, self.position_ids_BT
        return dataclasses.replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            document_ids_BT=None if documents is None else documents.to(device, non_blocking=True),
            position_ids_BT=None if skipped is None else skipped.to(device, non_blocking=True),
        )


def bucket_weights(job: TrainingJob) -> dict[str, float]:
    """Return the weight of each bucket's loss in the step's total.

    Buckets under cross-entropy are one text: together they weigh 1, shared by tokens. Distillation
    weighs what `objectives.loss_weights` says, relative to that.
    """
    weights = objectives.loss_weights(
        job.weighting,
        ratio=job.ratio,
        short_distill_weight=job.short_distill_weight,
        short_to_long_weight=job.short_to_long_weight,
    )
    buckets = job.recipe.buckets()
    texts = [bucket for bucket in buckets if _objective(job, bucket) == "cross_entropy"]
    total = sum(job.ratio[bucket] for bucket in texts)
    return {b: job.ratio[b] / total if b in texts else weights[b] for b in buckets}


def skipped_positions(job: TrainingJob, step: int) -> Tensor | None:
    """Return the student's positions on the original bucket [rows, original_window], or None.

    They depend on (seed, step) alone, so that a resumed training draws them without saved state.
    """
    if job.recipe.positions is None:
        return None
    return positions.skip_positions(
        job.recipe.positions,
        original_window=job.original_window,
        target_window=job.target_window,
        num_rows=job.rows["original"],
        generator=np.random.default_rng([job.seed, step]),
        sigma=job.sigma,
        truncation=job.truncation,
    )


def micro_batches(
    job: TrainingJob, rows_by_bucket: Mapping[str, Rows], position_ids_BT: Tensor | None
) -> Iterator[MicroBatch]:
    """Cut a step's rows into micro-batches of at most `micro_batch_tokens`, as equal as can be."""
    for bucket in job.recipe.buckets():
        rows = rows_by_bucket[bucket]
        num_rows, length = rows.input_ids_BT.shape
        documents = rows.document_ids_BT if job.mask_documents else None
        skipped = position_ids_BT if bucket == "original" else None
        counts = _mean_counts(rows.input_ids_BT, documents, _objective(job, bucket))
        for part in _parts(num_rows, max(1, job.micro_batch_tokens // length)):
            yield MicroBatch(
                bucket=bucket,
                input_ids_BT=rows.input_ids_BT[part],
                document_ids_BT=None if documents is None else documents[part],
                position_ids_BT=None if skipped is None else skipped[part],
                block_ids=rows.block_ids[part],
                share=float(counts[part].sum() / counts.sum()),
            )


class Objectives:
    """Runs the student, and the teacher where a bucket distils, on one micro-batch after another.

    Args:
        job: the training.
        student: the extended model; trained.
        teacher: the original model; None where the method has none.
        device: where both models are.
    """

    def __init__(
        self,
        job: TrainingJob,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        device: torch.device,
    ) -> None:
        self.job = job
        self.student = student
        self.teacher = teacher
        self.device = device
        self.last_layer = int(student.config.num_hidden_layers)
        head: Any = student.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.lm_head_weight_VD: Tensor = head.weight

    def loss(self, batch: MicroBatch) -> Tensor:
        """Return the mean loss of a micro-batch's rows, a float32 scalar with gradient."""
        batch = batch.to(self.device)
        if _objective(self.job, batch.bucket) == "cross_entropy":
            return self._cross_entropy(batch)
        if batch.bucket == "short":
            student, teacher = self._states(batch, self.job.distill_layers)
            return objectives.short_distill_loss(student, teacher)
        student, teacher = self._states(batch, (self.last_layer,))
        return objectives.short_to_long_loss(student[self.last_layer], teacher[self.last_layer])

    def where_not_finite(self, batch: MicroBatch) -> str:
        """Return which hidden states of a micro-batch are not finite first, in words."""
        batch = batch.to(self.device)
        layers = range(1, self.last_layer + 1)
        found = []
        with torch.no_grad():
            for name, model in (("student", self.student), ("teacher", self.teacher)):
                if model is None:
                    continue
                states = self._run(model, batch, layers, skipped=name == "student")
                bad = [layer for layer in layers if not bool(torch.isfinite(states[layer]).all())]
                if bad:
                    found.append(f"the {name}'s hidden state {bad[0]} (decoder layer {bad[0] - 1})")
        return "first in " + " and in ".join(found) if found else "every hidden state is finite"

    def _cross_entropy(self, batch: MicroBatch) -> Tensor:
        last = self.last_layer
        with self._compute_type():
            hidden_BTD = self._run(self.student, batch, (last,), skipped=True)[last]
            return objectives.long_loss(
                hidden_BTD,
                self.lm_head_weight_VD,
                batch.input_ids_BT,
                document_ids_BT=batch.document_ids_BT,
            )

    def _states(
        self, batch: MicroBatch, layers: Sequence[int]
    ) -> tuple[Mapping[int, Tensor], Mapping[int, Tensor]]:
        if self.teacher is None:
            raise ValueError(f"{self.job.method} distils and was given no teacher")
        with torch.no_grad():
            teacher = self._run(self.teacher, batch, layers, skipped=False)
        with self._compute_type():
            student = self._run(self.student, batch, layers, skipped=True)
        return student, teacher

    def _run(
        self,
        model: PreTrainedModel,
        batch: MicroBatch,
        layers: Sequence[int],
        *,
        skipped: bool,
    ) -> Mapping[int, Tensor]:
        return models.hidden_states(
            model,
            batch.input_ids_BT,
            layers=layers,
            position_ids_BT=batch.position_ids_BT if skipped else None,
            document_ids_BT=batch.document_ids_BT,
        )

    def _compute_type(self) -> torch.autocast:
        enabled = self.job.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _objective(job: TrainingJob, bucket: str) -> str:
    return str(getattr(job.recipe, bucket))


def _parts(num_rows: int, most: int) -> Iterator[slice]:
    num_parts = -(-num_rows // most)
    small, larger = divmod(num_rows, num_parts)
    start = 0
    for number in range(num_parts):
        size = small + (number < larger)
        yield slice(start, start + size)
        start += size


def _mean_counts(input_ids_BT: Tensor, document_ids_BT: Tensor | None, objective: str) -> Tensor:
    """Return how many terms each row adds to its bucket's mean, float64 [B]."""
    num_rows, length = input_ids_BT.shape
    if objective == "cross_entropy" and document_ids_BT is not None:
        return (document_ids_BT[:, 1:] == document_ids_BT[:, :-1]).sum(dim=1).double()
    return torch.full((num_rows,), float(length), dtype=torch.float64)
