"""The losses of one optimizer step: micro-batches, the terms of each bucket, words about a NaN.

Shapes: B rows, T tokens of a row, t those that this process computes, M tokens that the teacher is
shown, D hidden size.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from longred.attention.function import Captured
from longred.data.loader import Rows
from longred.method import positions
from longred.method.job import TrainingJob
from longred.method.methods import Term
from longred.models import load as models
from longred.models.architectures import logit_softcap
from longred.objectives import table as objectives
from longred.objectives.table import OBJECTIVES, Outputs, Passes, first_window
from longred.training.layers.activations import holding_activations
from longred.training.layers.compiling import as_written
from longred.training.sharding import entered
from longred.training.teacher import Teacher

Counts = Mapping[Term, Tensor]
"""How many equal parts each row adds to the mean of a term, float64 [B]."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward and backward.

    Attributes:
        bucket: the bucket that the rows are from.
        input_ids_BT: token ids.
        document_ids_BT: document of every token, or None where rows are whole.
        position_ids_BT: the student's positions, or None for 0…T-1.
        tokens: those of each row that this process computes; all, but for long rows that several
            processes share.
        block_ids: the rows' blocks in the bucket's file, for messages.
        shares: part of each term's mean that these rows are; a term's shares of a step sum to 1.
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
        documents, skipped = self.document_ids_BT, self.position_ids_BT
        return dataclasses.replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            document_ids_BT=None if documents is None else documents.to(device, non_blocking=True),
            position_ids_BT=None if skipped is None else skipped.to(device, non_blocking=True),
        )


def fixed_weights(job: TrainingJob) -> dict[Term, float]:
    """Return the weight of each term in the step's total, as the settings say it."""
    return objectives.loss_weights(
        job.terms,
        job.weighting,
        ratio=job.ratio,
        settings={term.weight: getattr(job, term.weight) for term in job.terms if term.weight},
    )


def skipped_positions(job: TrainingJob, row_numbers: Sequence[int]) -> Tensor | None:
    """Return the student's positions on rows of the original bucket [B, T], or None.

    A row's positions depend on (seed, row number) alone, so that a resumed training draws them
    without saved state, however the rows are divided over steps and processes.
    """
    if job.recipe.positions is None:
        return None
    rows = [
        positions.skip_positions(
            job.recipe.positions,
            original_window=job.original_window,
            target_window=job.target_window,
            num_rows=1,
            generator=np.random.default_rng([job.seed, number]),
            sigma=job.sigma,
            truncation=job.truncation,
        )
        for number in row_numbers
    ]
    return torch.cat(rows)


def term_counts(
    job: TrainingJob, rows_by_bucket: Mapping[str, Rows], *, rank: int = 0
) -> dict[Term, Tensor]:
    """Return how many equal parts each row, as far as `rank` computes it, adds to every term."""
    counts = {}
    for term in job.terms:
        rows = rows_by_bucket[term.bucket]
        documents = rows.document_ids_BT if job.mask_documents else None
        counted = OBJECTIVES[term.objective].counted
        counted_BT = counted(rows.input_ids_BT, documents, job.original_window)
        tokens = job.layout.part(term.bucket, counted_BT.shape[1], rank)
        counts[term] = counted_BT[:, tokens].sum(dim=1).double()
    return counts


def micro_batches(
    job: TrainingJob,
    rows_by_bucket: Mapping[str, Rows],
    counts: Counts,
    totals: Mapping[Term, float],
    *,
    rank: int = 0,
) -> Iterator[MicroBatch]:
    """Cut a step's rows into micro-batches of at most the job's tokens, as equal as can be.

    Args:
        job: the training.
        rows_by_bucket: rows of every bucket of the method.
        counts: of these rows.
        totals: sums of the counts over all rows of the step, whoever reads them.
        rank: of this process.
    """
    for bucket in job.recipe.buckets():
        rows = rows_by_bucket[bucket]
        num_rows, length = rows.input_ids_BT.shape
        documents = rows.document_ids_BT if job.mask_documents else None
        skipped = skipped_positions(job, rows.row_numbers) if bucket == "original" else None
        terms = [term for term in job.terms if term.bucket == bucket]
        most = job.micro_batch_tokens
        if bucket != "long":
            most = min(most, job.short_micro_batch_tokens or most)
        tokens = job.layout.part(bucket, length, rank)
        for part in _parts(num_rows, max(1, most // (tokens.stop - tokens.start))):
            yield MicroBatch(
                bucket=bucket,
                input_ids_BT=rows.input_ids_BT[part],
                document_ids_BT=None if documents is None else documents[part],
                position_ids_BT=None if skipped is None else skipped[part],
                tokens=tokens,
                block_ids=rows.block_ids[part],
                shares={term: float(counts[term][part].sum()) / totals[term] for term in terms},
            )


class Objectives:
    """Runs the student, and the teacher where a term distils, on one micro-batch after another.

    Args:
        job: the training.
        student: the extended model; trained.
        teacher: the original model; None where no term asks for it.
        device: where both models are.
        sequence: the processes that share long rows; None where each row is one process's.
    """

    def __init__(
        self,
        job: TrainingJob,
        student: PreTrainedModel,
        teacher: Teacher | None,
        device: torch.device,
        sequence: DeviceMesh | None = None,
    ) -> None:
        self.job = job
        self.student = student
        self.teacher = teacher
        self.device = device
        self.sequence = sequence
        self.last_layer = int(student.config.num_hidden_layers)

    def losses(self, batch: MicroBatch) -> dict[Term, Tensor]:
        """Return the mean loss of a micro-batch's rows for every term of its bucket.

        The models are run once for all of them. Scalars in fp32, with gradient.
        """
        batch = batch.to(self.device)

        def run() -> dict[Term, Tensor]:
            passes = self._passes(batch)
            with self._compute_type():
                return {term: OBJECTIVES[term.objective].loss(passes) for term in batch.shares}

        return entered(self.student, run)

    def where_not_finite(self, batch: MicroBatch) -> str:
        """Return which hidden states of a micro-batch are not finite first, in words."""
        batch = batch.to(self.device)
        layers = range(1, self.last_layer + 1)
        found = []
        states: dict[str, Mapping[int, Tensor]] = {}

        def run() -> None:
            states["student"] = self._run_student(batch, layers, False).states
            if self.teacher is not None:
                states["teacher"] = self._run_teacher(batch, layers, False, None).states

        with torch.no_grad():
            entered(self.student, run)
        for name, by_layer in states.items():
            bad = [layer for layer in layers if not bool(torch.isfinite(by_layer[layer]).all())]
            if bad:
                found.append(f"the {name}'s hidden state {bad[0]} (decoder layer {bad[0] - 1})")
        return "first in " + " and in ".join(found) if found else "every hidden state is finite"

    def _passes(self, batch: MicroBatch) -> Passes:
        wanted = [OBJECTIVES[term.objective] for term in batch.shares]
        distil = [objective for objective in wanted if objective.teacher]
        shown_BT, teacher = None, None
        with_next = slice(batch.tokens.start, batch.tokens.stop + 1)
        if distil:
            if distil[0].teacher == "first_window":
                shown_BT = first_window(
                    batch.input_ids_BT, batch.document_ids_BT, self.job.original_window
                )
            needs_attention = any(objective.needs_attention for objective in distil)
            teacher = self._run_teacher(batch, self._layers(distil), needs_attention, shown_BT)
        needs_attention = any(objective.needs_attention for objective in wanted)
        return Passes(
            student=self._run_student(batch, self._layers(wanted), needs_attention),
            teacher=teacher,
            input_ids_BT=batch.input_ids_BT[:, with_next],
            document_ids_BT=_columns(batch.document_ids_BT, with_next),
            shown_BT=_columns(shown_BT, batch.tokens),
            lm_head_weight_VD=self.student.get_output_embeddings().weight,  # type: ignore[no-untyped-call]
            logit_softcap=logit_softcap(self.student.config),
            distill_layers=self.job.distill_layers,
            last_layer=self.last_layer,
        )

    def _layers(self, wanted: Sequence[objectives.Objective]) -> list[int]:
        kinds = {objective.states for objective in wanted}
        layers = set(self.job.distill_layers) if "distilled" in kinds else set()
        return sorted(layers | ({self.last_layer} if "last" in kinds else set()))

    def _run_student(
        self, batch: MicroBatch, layers: Sequence[int], needs_attention: bool
    ) -> Outputs:
        with self._compute_type(), self._held(batch):
            if self._is_shared(batch):
                places_T = torch.arange(batch.tokens.start, batch.tokens.stop, device=self.device)
                return _run(
                    self.student,
                    batch.input_ids_BT[:, batch.tokens],
                    layers,
                    needs_attention,
                    places_T[None],
                    batch.document_ids_BT,
                    self.sequence,
                )
            return _run(
                self.student,
                batch.input_ids_BT,
                layers,
                needs_attention,
                batch.position_ids_BT,
                batch.document_ids_BT,
            )

    def _is_shared(self, batch: MicroBatch) -> bool:
        return bool(batch.tokens.stop - batch.tokens.start < batch.input_ids_BT.shape[1])

    def _run_teacher(
        self,
        batch: MicroBatch,
        layers: Sequence[int],
        needs_attention: bool,
        shown_BT: Tensor | None,
    ) -> Outputs:
        """Run the teacher as the student is run: an unchanged student makes the very same states.

        Of long rows it is shown `shown_BT` only, row by row, since they differ in number. Where
        processes share a row, each shows the documents that its own tokens are of, and keeps what
        the teacher made of those tokens.
        """
        if self.teacher is None:
            raise ValueError(f"{self.job.method} distils and was given no teacher")
        with torch.no_grad(), self.teacher() as model, self._compute_type():
            if shown_BT is None:
                return _run(
                    model, batch.input_ids_BT, layers, needs_attention, None, batch.document_ids_BT
                )
            own_BT = torch.zeros_like(shown_BT)
            own_BT[:, batch.tokens] = shown_BT[:, batch.tokens]
            if self._is_shared(batch):
                shown_BT = documents_of(own_BT, shown_BT, batch.document_ids_BT)
            with as_written():
                rows = [
                    _run(
                        model,
                        batch.input_ids_BT[row : row + 1, shown_T],
                        layers,
                        False,
                        None,
                        None
                        if batch.document_ids_BT is None
                        else batch.document_ids_BT[row : row + 1, shown_T],
                    ).states
                    for row, shown_T in enumerate(shown_BT)
                ]
        kept = [own_T[shown_T] for own_T, shown_T in zip(own_BT, shown_BT, strict=True)]
        return Outputs(
            {
                layer: torch.cat([r[layer][0][k] for r, k in zip(rows, kept, strict=True)])
                for layer in layers
            }
        )

    def _held(self, batch: MicroBatch) -> AbstractContextManager[None]:
        """Hold the activations of small micro-batches, whatever is done with those of others."""
        num_tokens = len(batch.input_ids_BT) * (batch.tokens.stop - batch.tokens.start)
        if num_tokens <= self.job.uncheckpointed_tokens:
            return holding_activations(self.student)
        return contextlib.nullcontext()

    def _compute_type(self) -> torch.autocast:
        enabled = self.job.dtype == "bfloat16"
        # A cache would hold a copy of every weight; within one pass none is used twice.
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False
        )


def _run(
    model: PreTrainedModel,
    input_ids_BT: Tensor,
    layers: Sequence[int],
    needs_attention: bool,
    position_ids_BT: Tensor | None,
    document_ids_BT: Tensor | None,
    sequence: DeviceMesh | None = None,
) -> Outputs:
    attention: dict[int, Captured] = {}

    def keep(captured: Captured) -> None:
        # A layer that is recomputed in the backward pass calls again.
        attention.setdefault(captured.layer, captured)

    states = models.hidden_states(
        model,
        input_ids_BT,
        layers=layers,
        position_ids_BT=position_ids_BT,
        document_ids_BT=document_ids_BT,
        capture=keep if needs_attention else None,
        sequence=sequence,
    )
    return Outputs(states, attention)


def documents_of(own_BT: Tensor, shown_BT: Tensor, document_ids_BT: Tensor | None) -> Tensor:
    """Return which of the shown tokens are of a document of own ones, bool [B, T].

    In a row without own tokens the first token is returned: every process has to run the model.
    """
    run_BT = torch.zeros_like(shown_BT, dtype=torch.long)
    if document_ids_BT is not None:
        run_BT = (document_ids_BT.diff(dim=1, prepend=document_ids_BT[:, :1]) != 0).cumsum(dim=1)
    rows = zip(own_BT, shown_BT, run_BT, strict=True)
    result_BT = torch.stack([shown & torch.isin(run, run[own]) for own, shown, run in rows])
    result_BT[:, 0] |= ~result_BT.any(dim=1)
    return result_BT


def _columns(x_BT: Tensor | None, columns: slice) -> Tensor | None:
    return None if x_BT is None else x_BT[:, columns]


def _parts(num_rows: int, most: int) -> Iterator[slice]:
    num_parts = -(-num_rows // most)
    small, larger = divmod(num_rows, num_parts)
    start = 0
    for number in range(num_parts):
        size = small + (number < larger)
        yield slice(start, start + size)
        start += size
