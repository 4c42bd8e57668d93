"""The losses of one optimizer step: micro-batches, and the terms of each bucket.

Shapes: B rows, T tokens per row, D hidden size.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from longred.attention.function import Captured
from longred.data.loader import Rows
from longred.method.job import TrainingJob
from longred.method.methods import Term
from longred.models import load as models
from longred.models.architectures import logit_scale, logit_softcap
from longred.objectives import table as objectives
from longred.objectives.table import OBJECTIVES, Outputs, Passes, first_window
from longred.training.layers.activations import holding_activations
from longred.training.layers.compiling import as_written
from longred.training.rows import seen_rows, skipped_positions
from longred.training.sharding import entered, whole

Teacher = Callable[[], AbstractContextManager[PreTrainedModel]]
"""Opens the original model for a forward pass."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward and backward pass.

    Attributes:
        bucket: bucket of the rows.
        input_ids_BT: token ids.
        document_ids_BT: document of every token; None if each row is one document.
        position_ids_BT: the student's positions; None for 0…T-1.
        tokens: the columns that this process computes: all, except for long rows that several
            processes share.
        block_ids: the rows' blocks in the bucket's file, for messages.
        shares: these rows' share of each term's mean; over a step a term's shares sum to 1.
    """

    bucket: str
    input_ids_BT: Tensor
    document_ids_BT: Tensor | None
    position_ids_BT: Tensor | None
    tokens: slice
    block_ids: list[int]
    shares: Mapping[Term, float]

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the micro-batch with its tensors on a device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **moved)


def fixed_weights(job: TrainingJob) -> dict[Term, float]:
    """Return the weight of each term in the total loss, from the settings."""
    return objectives.loss_weights(
        job.terms,
        job.weighting,
        ratio=job.ratio,
        settings={term.weight: getattr(job, term.weight) for term in job.terms if term.weight},
    )


def term_counts(
    job: TrainingJob, rows_by_bucket: Mapping[str, Rows], *, rank: int = 0
) -> dict[Term, Tensor]:
    """Count what each row contributes to the mean of each term, float64 [B].

    Args:
        job: the training.
        rows_by_bucket: the rows of a step.
        rank: of the process, whose tokens alone are counted.
    """
    counts = {}
    for term in job.terms:
        rows = seen_rows(job, term.bucket, rows_by_bucket[term.bucket])
        documents = rows.document_ids_BT if job.mask_documents else None
        counted = OBJECTIVES[term.objective].counted
        counted_BT = counted(rows.input_ids_BT, documents, job.original_window)
        tokens = job.layout.part(term.bucket, counted_BT.shape[1], rank)
        counts[term] = counted_BT[:, tokens].sum(dim=1).double()
    return counts


def micro_batches(
    job: TrainingJob,
    rows_by_bucket: Mapping[str, Rows],
    counts: Mapping[Term, Tensor],
    totals: Mapping[Term, float],
    *,
    rank: int = 0,
) -> Iterator[MicroBatch]:
    """Split a step's rows into near-equal micro-batches of at most the job's tokens.

    Args:
        job: the training.
        rows_by_bucket: rows of every bucket of the method.
        counts: `term_counts` of these rows.
        totals: sums of the counts over all rows of the step in all processes.
        rank: of this process.
    """
    for bucket in job.recipe.buckets():
        rows = seen_rows(job, bucket, rows_by_bucket[bucket])
        num_rows, length = rows.input_ids_BT.shape
        documents = rows.document_ids_BT if job.mask_documents else None
        skips = bucket == job.recipe.skipped_bucket
        skipped = skipped_positions(job, rows.row_numbers) if skips else None
        terms = [term for term in job.terms if term.bucket == bucket]
        max_tokens = job.micro_batch_tokens
        if bucket != "long":
            max_tokens = min(max_tokens, job.short_micro_batch_tokens or max_tokens)
        tokens = job.layout.part(bucket, length, rank)
        max_rows = max(1, max_tokens // (tokens.stop - tokens.start))
        for indices in np.array_split(np.arange(num_rows), -(-num_rows // max_rows)):
            part = slice(int(indices[0]), int(indices[-1]) + 1)
            yield MicroBatch(
                bucket=bucket,
                input_ids_BT=rows.input_ids_BT[part],
                document_ids_BT=None if documents is None else documents[part],
                position_ids_BT=None if skipped is None else skipped[part],
                tokens=tokens,
                block_ids=rows.block_ids[part],
                shares={term: float(counts[term][part].sum()) / totals[term] for term in terms},
            )


@dataclass(eq=False)
class Objectives:
    """Computes the losses of micro-batches with the student and, for distillation, the teacher.

    Args:
        job: the training.
        student: the extended model; trained.
        teacher: the original model; None if no term distils.
        device: of both models.
        sequence: the processes that share long rows; None if no row is shared.
    """

    job: TrainingJob
    student: PreTrainedModel
    teacher: Teacher | None
    device: torch.device
    sequence: DeviceMesh | None = None

    @property
    def last_layer(self) -> int:
        """Number of decoder layers: the index of the last hidden state."""
        return int(self.student.config.num_hidden_layers)

    def losses(self, batch: MicroBatch) -> dict[Term, Tensor]:
        """Return the mean loss of each term over a micro-batch's rows: float32 scalars.

        Each model runs once for all terms.
        """
        batch = batch.to(self.device)

        def run() -> dict[Term, Tensor]:
            passes = self._passes(batch)
            with self._autocast():
                return {term: OBJECTIVES[term.objective].loss(passes) for term in batch.shares}

        return entered(self.student, run)

    def where_not_finite(self, batch: MicroBatch) -> str:
        """Describe the first hidden states of a micro-batch that are not finite."""
        batch = batch.to(self.device)
        layers = range(1, self.last_layer + 1)

        def run() -> dict[str, Outputs]:
            outputs = {"student": self._run_student(batch, layers, False)}
            if self.teacher is not None:
                outputs["teacher"] = self._run_teacher(batch, layers, False, None)
            return outputs

        with torch.no_grad():
            outputs = entered(self.student, run)
        found = []
        for name, output in outputs.items():
            bad = [i for i in layers if not bool(torch.isfinite(output.states[i]).all())]
            if bad:
                found.append(f"the {name}'s hidden state {bad[0]} (decoder layer {bad[0] - 1})")
        return "first in " + " and in ".join(found) if found else "every hidden state is finite"

    def _passes(self, batch: MicroBatch) -> Passes:
        wanted = [OBJECTIVES[term.objective] for term in batch.shares]
        distil = [objective for objective in wanted if objective.teacher]
        shown_BT, teacher = None, None
        if distil:
            if distil[0].teacher == "first_window":
                window = self.job.original_window
                shown_BT = first_window(batch.input_ids_BT, batch.document_ids_BT, window)
            needs_attention = any(objective.needs_attention for objective in distil)
            teacher = self._run_teacher(batch, self._layers(distil), needs_attention, shown_BT)
        needs_attention = any(objective.needs_attention for objective in wanted)
        student = self._run_student(batch, self._layers(wanted), needs_attention)
        student = dataclasses.replace(student, lm_head_weight_VD=head_weight(self.student))
        if teacher is not None and any(objective.needs_teacher_head for objective in distil):
            # Gathered last: a process holds a whole head only while losses are computed.
            teacher = dataclasses.replace(teacher, lm_head_weight_VD=self._teacher_head())
        with_next = slice(batch.tokens.start, batch.tokens.stop + 1)
        return Passes(
            student=student,
            teacher=teacher,
            input_ids_BT=batch.input_ids_BT[:, with_next],
            document_ids_BT=_columns(batch.document_ids_BT, with_next),
            shown_BT=_columns(shown_BT, batch.tokens),
            logit_scale=logit_scale(self.student.config),
            logit_softcap=logit_softcap(self.student.config),
            temperature=self.job.logit_distill_temperature,
            relation_heads=self.job.relation_heads,
            distill_layers=self.job.distill_layers,
            last_layer=self.last_layer,
        )

    def _layers(self, wanted: Sequence[objectives.Objective]) -> list[int]:
        """Return the layers whose hidden states some objectives need."""
        kinds = {objective.states for objective in wanted}
        layers = set(self.job.distill_layers) if "distilled" in kinds else set()
        return sorted(layers | ({self.last_layer} if "last" in kinds else set()))

    def _run_student(
        self, batch: MicroBatch, layers: Sequence[int], needs_attention: bool
    ) -> Outputs:
        input_ids_BT, documents_BT = batch.input_ids_BT[:, batch.tokens], batch.document_ids_BT
        settings: dict[str, Any] = {"position_ids_BT": batch.position_ids_BT}
        with self._autocast(), self._held(batch):
            if _is_shared(batch):
                start, stop = batch.tokens.start, batch.tokens.stop
                positions_BT = torch.arange(start, stop, device=self.device)[None]
                settings = {"position_ids_BT": positions_BT, "sequence": self.sequence}
            return _run(
                self.student, layers, needs_attention, input_ids_BT, documents_BT, **settings
            )

    def _run_teacher(
        self,
        batch: MicroBatch,
        layers: Sequence[int],
        needs_attention: bool,
        shown_BT: Tensor | None,
    ) -> Outputs:
        """Run the teacher with the same code as the student, so equal weights give equal bits.

        With `shown_BT`, bool [B, T], it sees only these tokens, one row at a time because rows
        differ in number. A process that shares a row runs the documents that its own tokens belong
        to and keeps the states of those tokens.
        """
        if self.teacher is None:
            raise ValueError(f"{self.job.method} distils and was given no teacher")
        with torch.no_grad(), self.teacher() as model, self._autocast():
            input_ids_BT, documents_BT = batch.input_ids_BT, batch.document_ids_BT
            if shown_BT is None:
                return _run(model, layers, needs_attention, input_ids_BT, documents_BT)
            own_BT = torch.zeros_like(shown_BT)
            own_BT[:, batch.tokens] = shown_BT[:, batch.tokens]
            if _is_shared(batch):
                shown_BT = documents_of(own_BT, shown_BT, documents_BT)
            by_layer: dict[int, list[Tensor]] = {layer: [] for layer in layers}
            with as_written():
                for row, (own_T, shown_T) in enumerate(zip(own_BT, shown_BT, strict=True)):
                    ids_1T = input_ids_BT[row : row + 1, shown_T]
                    documents_1T = _columns(documents_BT, shown_T, slice(row, row + 1))
                    states = _run(model, layers, False, ids_1T, documents_1T).states
                    for layer in layers:
                        by_layer[layer].append(states[layer][0][own_T[shown_T]])
        return Outputs({layer: torch.cat(states) for layer, states in by_layer.items()})

    def _teacher_head(self) -> Tensor:
        if self.teacher is None:
            raise ValueError(f"{self.job.method} distils and was given no teacher")
        with torch.no_grad(), self.teacher() as model:
            return head_weight(model)

    def _held(self, batch: MicroBatch) -> AbstractContextManager[None]:
        """Keep the activations of small micro-batches, even if others are checkpointed."""
        num_tokens = len(batch.input_ids_BT) * (batch.tokens.stop - batch.tokens.start)
        if num_tokens <= self.job.uncheckpointed_tokens:
            return holding_activations(self.student)
        return contextlib.nullcontext()

    def _autocast(self) -> torch.autocast:
        enabled = self.job.dtype == "bfloat16"
        # A cache would hold a copy of every weight; within one pass none is used twice.
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False
        )


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return a model's output embedding [V, D], gathered from all processes.

    A teacher whose embeddings are tied has no LM head of its own.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: Any = model.get_input_embeddings() if head is None else head
    return whole(embedding.weight)


def _is_shared(batch: MicroBatch) -> bool:
    """Return whether several processes compute the tokens of each row."""
    return bool(batch.tokens.stop - batch.tokens.start < batch.input_ids_BT.shape[1])


def _run(
    model: PreTrainedModel,
    layers: Sequence[int],
    needs_attention: bool,
    input_ids_BT: Tensor,
    document_ids_BT: Tensor | None,
    **settings: Any,
) -> Outputs:
    """Run a model; return the hidden states of some layers, and their attention if needed."""
    attention: dict[int, Captured] = {}

    def keep(captured: Captured) -> None:
        # A layer that is recomputed in the backward pass calls again.
        attention.setdefault(captured.layer, captured)

    settings |= {"document_ids_BT": document_ids_BT, "capture": keep if needs_attention else None}
    states = models.hidden_states(model, input_ids_BT, layers=layers, **settings)
    return Outputs(states, attention=attention)


def documents_of(own_BT: Tensor, shown_BT: Tensor, document_ids_BT: Tensor | None) -> Tensor:
    """Return which of the shown tokens belong to a document with own tokens, bool [B, T].

    In a row without own tokens the first token is returned: every process must run the model.
    """
    run_BT = torch.zeros_like(shown_BT, dtype=torch.long)
    if document_ids_BT is not None:
        run_BT = (document_ids_BT.diff(dim=1, prepend=document_ids_BT[:, :1]) != 0).cumsum(dim=1)
    rows = zip(own_BT, shown_BT, run_BT, strict=True)
    result_BT = torch.stack([shown & torch.isin(run, run[own]) for own, shown, run in rows])
    result_BT[:, 0] |= ~result_BT.any(dim=1)
    return result_BT


def _columns(
    x_BT: Tensor | None, columns: slice | Tensor, rows: slice = slice(None)
) -> Tensor | None:
    return None if x_BT is None else x_BT[rows, columns]
