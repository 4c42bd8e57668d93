"""The table of objectives: what each needs of the models, how its loss is computed and weighted.

Shapes: B rows, T tokens, M tokens shown to the teacher, D hidden dimension; N decoder layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.errors import ConfigError
from longred.method.methods import Term
from longred.objectives.cross_entropy import long_loss, targets
from longred.objectives.hidden import cosine_distance, short_distill_loss, short_to_long_loss
from longred.objectives.logits import HeadInputs, logit_distill_loss
from longred.objectives.relations import attention_distill_loss, document_starts


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of one model on a micro-batch.

    Attributes:
        states: hidden_BTD by `hidden_states` index; of a teacher under `first_window` hidden_MD,
            its shown tokens in order.
        lm_head_weight_VD: the model's output embedding; of a teacher None unless needed.
        attention: `longred.attention.function.Captured` by decoder layer; empty if no objective
            needs it.
    """

    states: Mapping[int, Tensor]
    lm_head_weight_VD: Tensor | None = None
    attention: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passes:
    """Inputs of an objective: the rows and the outputs of both models.

    Attributes:
        student: outputs with gradient.
        teacher: outputs without gradient; None if no term of the bucket distils.
        input_ids_BT: token ids; of a row that several processes share, this process's tokens and
            the next one.
        document_ids_BT: ids of the same tokens; each run of equal ids is one document.
        shown_BT: mask of the tokens that the teacher saw; None for all.
        logit_scale: factor of both models' logits.
        logit_softcap: cap of both models' logits, after scaling.
        temperature: of the distributions that `logit_distill` compares.
        relation_heads: heads that relations are averaged over.
        distill_layers: `hidden_states` indices of the distilled layers.
        last_layer: N.
    """

    student: Outputs
    teacher: Outputs | None
    input_ids_BT: Tensor
    document_ids_BT: Tensor | None
    shown_BT: Tensor | None
    logit_scale: float
    logit_softcap: float | None
    temperature: float
    relation_heads: str
    distill_layers: tuple[int, ...]
    last_layer: int

    @property
    def original(self) -> Outputs:
        """The teacher's outputs.

        Raises:
            ValueError: the teacher was not run.
        """
        if self.teacher is None:
            raise ValueError("a distilling objective has no teacher outputs")
        return self.teacher

    def head_inputs(self, outputs: Outputs) -> HeadInputs:
        """Return what the logits of one model are computed from, for every objective.

        Raises:
            ValueError: the model was run without its LM head.
        """
        if outputs.lm_head_weight_VD is None:
            raise ValueError("an objective on logits was given no LM head")
        hidden_BTD = outputs.states[self.last_layer]
        if self.logit_scale != 1.0:
            # The same as scaled logits, and no loss needs to know.
            hidden_BTD = hidden_BTD * self.logit_scale
        return HeadInputs(hidden_BTD, outputs.lm_head_weight_VD)


@dataclass(frozen=True, slots=True)
class Objective:
    """An entry of the table.

    Attributes:
        loss: returns the mean loss of the rows, an fp32 scalar with gradient.
        counted: returns the tokens of whole rows that the mean is over, bool [B, T], from input
            ids, document ids and the original window.
        states: hidden states that it needs: the distilled ones, the last, or none.
        teacher: input of the teacher: the rows; the tokens of long rows inside the first original
            window of their document; None if the teacher is not run.
        needs_attention: whether it needs each layer's queries, keys and values.
        needs_teacher_head: whether it needs the teacher's LM head.
    """

    loss: Callable[[Passes], Tensor]
    counted: Callable[[Tensor, Tensor | None, int], Tensor]
    states: Literal["distilled", "last", "none"] = "last"
    teacher: Literal["rows", "first_window"] | None = None
    needs_attention: bool = False
    needs_teacher_head: bool = False


def first_window(input_ids_BT: Tensor, document_ids_BT: Tensor | None, window: int) -> Tensor:
    """Return which tokens lie in the first `window` tokens of their document, bool [B, T].

    A teacher that sees these tokens of the document sees exactly what the student sees, and no
    position beyond its own window, where its outputs are noise. RoPE is relative: the document's
    offset in the row does not matter.
    """
    index_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    if document_ids_BT is None:
        return index_T.expand(input_ids_BT.shape) < window
    return index_T - document_starts(document_ids_BT) < window


def _tokens(input_ids_BT: Tensor, document_ids_BT: Tensor | None, window: int) -> Tensor:
    return torch.ones_like(input_ids_BT, dtype=torch.bool)


def _targets(input_ids_BT: Tensor, document_ids_BT: Tensor | None, window: int) -> Tensor:
    return F.pad(targets(input_ids_BT, document_ids_BT), (0, 1))


def _cross_entropy(passes: Passes) -> Tensor:
    return long_loss(
        *passes.head_inputs(passes.student),
        passes.input_ids_BT,
        document_ids_BT=passes.document_ids_BT,
        logit_softcap=passes.logit_softcap,
    )


def _hidden_distill(passes: Passes) -> Tensor:
    student, teacher = (
        {layer: outputs.states[layer] for layer in passes.distill_layers}
        for outputs in (passes.student, passes.original)
    )
    return short_distill_loss(student, teacher)


def _short_to_long(passes: Passes) -> Tensor:
    last = passes.last_layer
    return short_to_long_loss(passes.student.states[last], passes.original.states[last])


def _logit_distill(passes: Passes) -> Tensor:
    return logit_distill_loss(
        passes.head_inputs(passes.student),
        passes.head_inputs(passes.original),
        temperature=passes.temperature,
        logit_softcap=passes.logit_softcap,
    )


def _attention_distill(passes: Passes) -> Tensor:
    return attention_distill_loss(
        passes.student.attention,
        passes.original.attention,
        document_ids_BT=passes.document_ids_BT,
        heads=passes.relation_heads,
    )


def _long_distill(passes: Passes) -> Tensor:
    student_MD = passes.student.states[passes.last_layer][passes.shown_BT]
    if not len(student_MD):
        # If several processes share a row, some of them may hold no shown token.
        return student_MD.float().sum()
    return cosine_distance(student_MD, passes.original.states[passes.last_layer])


OBJECTIVES = {
    "cross_entropy": Objective(_cross_entropy, _targets),
    "hidden_distill": Objective(_hidden_distill, _tokens, states="distilled", teacher="rows"),
    "short_to_long": Objective(_short_to_long, _tokens, teacher="rows"),
    "attention_distill": Objective(
        _attention_distill, _tokens, states="none", teacher="rows", needs_attention=True
    ),
    "logit_distill": Objective(_logit_distill, _tokens, teacher="rows", needs_teacher_head=True),
    "long_distill": Objective(_long_distill, first_window, teacher="first_window"),
}
"""Objectives that a term of a method can name."""

WEIGHTINGS = ("token_share", "formula")


def loss_weights(
    terms: Sequence[Term],
    weighting: str,
    *,
    ratio: Mapping[str, int],
    settings: Mapping[str, float],
) -> dict[Term, float]:
    """Return the weight of every term in the step's loss.

    The cross-entropy terms weigh 1 together, shared by tokens; other terms weigh relative to that.

    Args:
        terms: terms of a method.
        weighting: `formula` uses the settings unchanged; `token_share` multiplies each by its
            bucket's tokens per long token, as the published training did: at 4:3:1, 5 and 10 become
            3.75 and 2.5.
        ratio: tokens of each bucket in one step.
        settings: weights by the names that the terms use.

    Raises:
        ConfigError: the weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(
            f"training.weighting: {weighting!r} is not one of {', '.join(WEIGHTINGS)}"
        )
    text_tokens = sum(ratio[term.bucket] for term in terms if term.objective == "cross_entropy")
    weights = {}
    for term in terms:
        if term.objective == "cross_entropy":
            weights[term] = ratio[term.bucket] / text_tokens
        elif term.weight is None:
            weights[term] = 1.0
        else:
            share = ratio[term.bucket] / ratio["long"] if weighting == "token_share" else 1.0
            weights[term] = settings[term.weight] * share
    return weights
