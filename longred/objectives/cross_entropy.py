"""Next-token cross-entropy that never holds the logits of all tokens.

Shapes: B rows, T tokens, M = B x T, C tokens of a chunk, D hidden dimension, V
vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.precision import at_least_fp32, product

NO_TARGET = -100
"""Marks a token whose next token is not predicted."""


def long_loss(
    hidden_BTD: Tensor,
    lm_head_weight_VD: Tensor,
    input_ids_BT: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    logit_softcap: float | None = None,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Return the mean next-token cross-entropy, in nats, over all tokens that have a target.

    The hidden state at t predicts the token at t + 1. The last token of a row has no target, unless
    `input_ids_BT` goes on for one token more; nor has the last of a document where
    `document_ids_BT` is given. Logits exist for `chunk_tokens` tokens at a time only.

    Args:
        hidden_BTD: hidden states after the final norm.
        lm_head_weight_VD: the output embedding.
        input_ids_BT: the tokens of the rows; where these are parts of longer rows, also the next.
        document_ids_BT: ids of the same tokens, whose runs are documents.
        logit_softcap: logits x become cap * tanh(x / cap), as in Gemma-2.
        chunk_tokens: tokens whose logits are held at once.

    Returns:
        A scalar in fp32 (fp64 for fp64 input); 0 if no token has a target.
    """
    # Tokens without a target are computed and left out of the sum: choosing the others would make
    # the host wait for the device. Rows are flattened without a copy.
    has_target_BT = targets(input_ids_BT, document_ids_BT)
    target_BT = input_ids_BT[:, 1:].masked_fill(~has_target_BT, NO_TARGET)
    missing = hidden_BTD.shape[1] - target_BT.shape[1]
    target_BT = F.pad(target_BT, (0, missing), value=NO_TARGET)
    hidden_MD = hidden_BTD.flatten(0, 1)
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_MD,
        lm_head_weight_VD,
        target_BT.flatten(),
        chunk_tokens,
        _compute_dtype(hidden_MD),
        logit_softcap,
    )
    return total / has_target_BT.sum().clamp(min=1)


def targets(input_ids_BT: Tensor, document_ids_BT: Tensor | None) -> Tensor:
    """Return which tokens are followed by one of the same document, bool [B, T - 1]."""
    if document_ids_BT is None:
        return torch.ones_like(input_ids_BT[:, 1:], dtype=torch.bool)
    return document_ids_BT[:, 1:] == document_ids_BT[:, :-1]


def _compute_dtype(hidden_MD: Tensor) -> torch.dtype:
    device = hidden_MD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden_MD.dtype


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies whose gradient is taken chunk by chunk in the forward pass.

    Taking it there costs no second pass over the output embedding, which checkpointed chunks would.
    Products are taken in the compute type; their sum over chunks, the gradient of the output
    embedding, is kept in fp32: in bf16 it would lose the later chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        target_M: Tensor,
        chunk_tokens: int,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> Tensor:
        """Return the sum over tokens, keeping the gradients for backward."""
        precise = at_least_fp32(hidden_MD.dtype)
        total = torch.zeros((), dtype=precise, device=hidden_MD.device)
        hidden_grad_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        weight_grad_VD = (
            torch.zeros_like(weight_VD, dtype=at_least_fp32(weight_VD.dtype))
            if ctx.needs_input_grad[1]
            else None
        )
        needs_gradient = hidden_grad_MD is not None or weight_grad_VD is not None
        with torch.autocast(hidden_MD.device.type, enabled=False):
            weight_VD = weight_VD.to(dtype)
            for start in range(0, target_M.numel(), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                hidden_CD = hidden_MD[part].to(dtype)
                loss, logits_grad_CV = _loss_and_gradient(
                    hidden_CD, weight_VD, target_M[part], softcap, needs_gradient
                )
                total += loss
                if logits_grad_CV is None:
                    continue
                # Rows without a target are left out here, where they are narrowest.
                no_target_C1 = (target_M[part] == NO_TARGET)[:, None]
                if hidden_grad_MD is not None:
                    grad_CD = logits_grad_CV @ weight_VD
                    hidden_grad_MD[part] = grad_CD.masked_fill_(no_target_C1, 0.0)
                if weight_grad_VD is not None:
                    hidden_CD = hidden_CD.masked_fill(no_target_C1, 0.0)
                    _add_product(weight_grad_VD, logits_grad_CV.T, hidden_CD)
                # Else the next chunk's logits would exist beside this one's.
                del logits_grad_CV
        ctx.save_for_backward(hidden_grad_MD, weight_grad_VD)
        return total

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """Scale the kept gradients by the gradient of the sum."""
        (grad_output,) = grad_outputs
        hidden_grad_MD, weight_grad_VD = (
            None if kept is None else kept * grad_output.to(kept.dtype)
            for kept in ctx.saved_tensors
        )
        return hidden_grad_MD, weight_grad_VD, None, None, None, None


def _loss_and_gradient(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    target_C: Tensor,
    softcap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return a chunk's summed loss and its gradient with respect to the logits, if needed.

    The gradient's rows without a target are not those of the loss, which leaves them out.
    """
    precise = at_least_fp32(hidden_CD.dtype)
    slope_CV = None
    logits_CV = F.linear(hidden_CD, weight_VD)
    if softcap is not None:
        logits_CV = torch.tanh(logits_CV.to(precise) / softcap)
        slope_CV = 1.0 - logits_CV.square()
        logits_CV = softcap * logits_CV
    log_probs_CV = logits_CV.log_softmax(dim=-1, dtype=precise)
    del logits_CV
    loss = F.nll_loss(log_probs_CV, target_C, reduction="sum", ignore_index=NO_TARGET)
    if not needs_gradient:
        return loss, None
    logits_grad_CV = log_probs_CV.exp_()
    rows_C = torch.arange(logits_grad_CV.shape[0], device=target_C.device)
    logits_grad_CV[rows_C, target_C.clamp(min=0)] -= 1.0
    if slope_CV is not None:
        logits_grad_CV *= slope_CV
    return loss, logits_grad_CV.to(hidden_CD.dtype)


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    if total_VD.dtype == left_VC.dtype:
        total_VD.addmm_(left_VC, right_CD)
    else:
        total_VD += product(left_VC, right_CD, total_VD.dtype)
