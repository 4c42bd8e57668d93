"""What students are trained on: long, short-distillation and short-to-long loss, and their weights.

Shapes: B rows, T tokens, D hidden dimension, V vocabulary. Source: arXiv 2502.07365, section 4.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.errors import ConfigError

WEIGHTINGS = ("token_share", "formula")


def long_loss(
    hidden_BTD: Tensor,
    lm_head_weight_VD: Tensor,
    input_ids_BT: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Return the mean next-token cross-entropy, in nats, over all tokens that have a target.

    The hidden state at t predicts the token at t + 1. The last token of a row has no target, nor
    has the last of a document where `document_ids_BT` is given. Logits exist for `chunk_tokens`
    tokens at a time only.

    Args:
        hidden_BTD: hidden states after the final norm.
        lm_head_weight_VD: the output embedding.
        input_ids_BT: the tokens of the rows.
        document_ids_BT: ids whose runs are documents.
        chunk_tokens: tokens whose logits are held at once.

    Returns:
        A scalar in fp32 (fp64 for fp64 input); 0 if no token has a target.
    """
    has_target_BT = torch.ones_like(input_ids_BT[:, 1:], dtype=torch.bool)
    if document_ids_BT is not None:
        has_target_BT = document_ids_BT[:, 1:] == document_ids_BT[:, :-1]
    hidden_MD = hidden_BTD[:, :-1][has_target_BT]
    target_M = input_ids_BT[:, 1:][has_target_BT]
    total: Tensor = _ChunkedCrossEntropy.apply(hidden_MD, lm_head_weight_VD, target_M, chunk_tokens)  # type: ignore[no-untyped-call]
    return total / max(1, target_M.numel())


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies whose gradient is taken chunk by chunk in the forward pass.

    Taking it there costs no second pass over the output embedding, which checkpointed chunks would.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, chunk_tokens: int
    ) -> Tensor:
        """Return the sum over tokens, keeping the gradients for backward."""
        precise = _at_least_fp32(hidden_MD.dtype)
        total = torch.zeros((), dtype=precise, device=hidden_MD.device)
        hidden_grad_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        weight_grad_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        for start in range(0, target_M.numel(), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits_CV = F.linear(hidden_MD[part], weight_VD).to(precise)
            log_probs_CV = logits_CV.log_softmax(dim=-1)
            total += F.nll_loss(log_probs_CV, target_M[part], reduction="sum")
            if hidden_grad_MD is None and weight_grad_VD is None:
                continue
            logits_grad_CV = log_probs_CV.exp_()
            rows_C = torch.arange(logits_grad_CV.shape[0], device=target_M.device)
            logits_grad_CV[rows_C, target_M[part]] -= 1.0
            logits_grad_CV = logits_grad_CV.to(hidden_MD.dtype)
            if hidden_grad_MD is not None:
                hidden_grad_MD[part] = logits_grad_CV @ weight_VD.to(logits_grad_CV.dtype)
            if weight_grad_VD is not None:
                weight_grad_VD += logits_grad_CV.T @ hidden_MD[part]
        ctx.save_for_backward(hidden_grad_MD, weight_grad_VD)
        return total

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scale the kept gradients by the gradient of the sum."""
        (grad_output,) = grad_outputs
        hidden_grad_MD, weight_grad_VD = ctx.saved_tensors
        return (
            None
            if hidden_grad_MD is None
            else hidden_grad_MD * grad_output.to(hidden_grad_MD.dtype),
            None
            if weight_grad_VD is None
            else weight_grad_VD * grad_output.to(weight_grad_VD.dtype),
            None,
            None,
        )


def cosine_distance(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Return 1 - the mean cosine of paired vectors, as a scalar in fp32.

    Inputs in lower precision are raised first: in bf16 the loss of a 1 % deviation reads 0 and its
    gradient is wrong by 44 %.
    """
    precise = _at_least_fp32(student_BTD.dtype)
    return (
        1.0 - F.cosine_similarity(student_BTD.to(precise), teacher_BTD.to(precise), dim=-1).mean()
    )


def short_distill_loss(student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
    """Return the sum over the distilled layers of their cosine distances (section 4.2).

    Args:
        student: hidden_BTD by `hidden_states` index (1 to N).
        teacher: the same layers of the teacher.

    Raises:
        ValueError: the two hold different layers, or none.
    """
    if not student or student.keys() != teacher.keys():
        raise ValueError(
            "student and teacher must hold the same layers, at least one: "
            f"{sorted(student)} and {sorted(teacher)}"
        )
    return torch.stack(
        [cosine_distance(student[layer], teacher[layer]) for layer in sorted(student)]
    ).sum()


def short_to_long_loss(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Return the cosine distance of the last hidden states (section 4.3).

    Args:
        student_BTD: hidden state N of the student, under skipped positions.
        teacher_BTD: hidden state N of the teacher, under positions 0 to T - 1.
    """
    return cosine_distance(student_BTD, teacher_BTD)


def loss_weights(
    weighting: str,
    *,
    ratio: Mapping[str, int],
    short_distill_weight: float,
    short_to_long_weight: float,
) -> dict[str, float]:
    """Return what each bucket's loss is multiplied by, relative to the long loss.

    Args:
        weighting: `formula` takes the weights as they are; `token_share` multiplies each with its
            bucket's tokens per long token, as the published training did: at 4:3:1, 5 and 10 act
            as 3.75 and 2.5.
        ratio: tokens of the buckets `long`, `short` and `original` in one step.
        short_distill_weight: alpha 1 of the paper.
        short_to_long_weight: alpha 2 of the paper.

    Raises:
        ConfigError: the weighting is unknown.
    """
    weights = {"long": 1.0, "short": short_distill_weight, "original": short_to_long_weight}
    if weighting == "formula":
        return weights
    if weighting == "token_share":
        return {
            bucket: weight * ratio[bucket] / ratio["long"] for bucket, weight in weights.items()
        }
    raise ConfigError(f"training.weighting: {weighting!r} is not one of {', '.join(WEIGHTINGS)}")


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
