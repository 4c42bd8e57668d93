"""The table of objectives: what each needs of the models, and how its loss is taken.

Shapes: B rows, T tokens, D hidden dimension; N decoder layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.cross_entropy import long_loss, targets
from longred.objectives.hidden import cosine_distance, short_distill_loss, short_to_long_loss
from longred.objectives.relations import Attended, attention_distill_loss


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one model made of some rows.

    Attributes:
        states: hidden_BTD by `hidden_states` index; of the teacher under `first_window`, the tokens
            that it was shown, in order [M, D].
        attention: what each decoder layer attended with; empty where no objective asks for it.
    """

    states: Mapping[int, Tensor]
    attention: Mapping[int, Attended] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passes:
    """What an objective is taken from: the rows, and what both models made of them.

    Attributes:
        student: with gradient.
        teacher: without; None where no term of the bucket asks for it.
        input_ids_BT: the rows; of a row that several processes share, this one's tokens and the
            next.
        document_ids_BT: of the same tokens, ids whose runs are documents, or None.
        shown_BT: which tokens the teacher was shown; None for all.
        lm_head_weight_VD: the student's output embedding.
        logit_softcap: of the student's logits, or None.
        distill_layers: `hidden_states` indices of the distilled layers.
        last_layer: N.
    """

    student: Outputs
    teacher: Outputs | None
    input_ids_BT: Tensor
    document_ids_BT: Tensor | None
    shown_BT: Tensor | None
    lm_head_weight_VD: Tensor
    logit_softcap: float | None
    distill_layers: tuple[int, ...]
    last_layer: int

    @property
    def original(self) -> Outputs:
        """What the teacher made of the rows.

        Raises:
            ValueError: it was not run.
        """
        if self.teacher is None:
            raise ValueError("an objective that distils was given no teacher")
        return self.teacher


@dataclass(frozen=True, slots=True)
class Objective:
    """An entry of the table.

    Attributes:
        loss: the mean loss of the rows, a scalar in fp32 with gradient.
        counted: which tokens of whole rows that mean is taken over, bool [B, T].
        states: hidden states that it needs: those distilled, the last, or none.
        teacher: how the teacher is run: on the rows; on the tokens of a long row that lie in the
            first original window of their document; or not at all.
        needs_attention: whether it needs what the layers attend with.
    """

    loss: Callable[[Passes], Tensor]
    counted: Callable[[Tensor, Tensor | None, int], Tensor]
    states: Literal["distilled", "last", "none"] = "last"
    teacher: Literal["rows", "first_window"] | None = None
    needs_attention: bool = False


def first_window(input_ids_BT: Tensor, document_ids_BT: Tensor | None, window: int) -> Tensor:
    """Return which tokens of long rows lie in the first `window` tokens of their document, [B, T].

    There a teacher that is shown the same document sees exactly what the student sees, and no
    position beyond its own window, where it would teach noise. RoPE is relative: the document's
    place in the row does not matter.
    """
    place_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    place_BT = place_T.expand(input_ids_BT.shape)
    if document_ids_BT is None:
        return place_BT < window
    starts_BT = document_ids_BT.diff(dim=1, prepend=document_ids_BT[:, :1] - 1) != 0
    begin_BT = torch.where(starts_BT, place_BT, 0).cummax(dim=1).values
    return place_BT - begin_BT < window


def _tokens(input_ids_BT: Tensor, document_ids_BT: Tensor | None, window: int) -> Tensor:
    return torch.ones_like(input_ids_BT, dtype=torch.bool)


def _targets(input_ids_BT: Tensor, document_ids_BT: Tensor | None, window: int) -> Tensor:
    return F.pad(targets(input_ids_BT, document_ids_BT), (0, 1))


def _cross_entropy(passes: Passes) -> Tensor:
    return long_loss(
        passes.student.states[passes.last_layer],
        passes.lm_head_weight_VD,
        passes.input_ids_BT,
        document_ids_BT=passes.document_ids_BT,
        logit_softcap=passes.logit_softcap,
    )


def _hidden_distill(passes: Passes) -> Tensor:
    student, teacher = passes.student.states, passes.original.states
    return short_distill_loss(
        {layer: student[layer] for layer in passes.distill_layers},
        {layer: teacher[layer] for layer in passes.distill_layers},
    )


def _short_to_long(passes: Passes) -> Tensor:
    last = passes.last_layer
    return short_to_long_loss(passes.student.states[last], passes.original.states[last])


def _attention_distill(passes: Passes) -> Tensor:
    return attention_distill_loss(
        passes.student.attention,
        passes.original.attention,
        document_ids_BT=passes.document_ids_BT,
    )


def _long_distill(passes: Passes) -> Tensor:
    student_MD = passes.student.states[passes.last_layer][passes.shown_BT]
    if not len(student_MD):
        # Of a row that several processes share, only some may hold tokens that are shown.
        return student_MD.float().sum()
    return cosine_distance(student_MD, passes.original.states[passes.last_layer])


OBJECTIVES = {
    "cross_entropy": Objective(_cross_entropy, _targets),
    "hidden_distill": Objective(_hidden_distill, _tokens, states="distilled", teacher="rows"),
    "short_to_long": Objective(_short_to_long, _tokens, teacher="rows"),
    "attention_distill": Objective(
        _attention_distill, _tokens, states="none", teacher="rows", needs_attention=True
    ),
    "long_distill": Objective(_long_distill, first_window, teacher="first_window"),
}
"""Every objective that a term of a method can name."""
