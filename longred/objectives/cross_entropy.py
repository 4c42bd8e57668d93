"""Next-token cross-entropy that never holds the logits of all tokens.

Shapes: B rows, T tokens, M = B x T, C tokens of a chunk, D hidden dimension, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.precision import at_least_fp32, autocast_type, product

NO_TARGET = -100
"""Label of tokens without a target."""


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
    `input_ids_BT` has one token more than `hidden_BTD`; neither has the last token of a document if
    `document_ids_BT` is given. Only the logits of `chunk_tokens` tokens exist at a time.

    Args:
        hidden_BTD: hidden states after the final norm.
        lm_head_weight_VD: the output embedding.
        input_ids_BT: token ids; of a part of a longer row also the next token.
        document_ids_BT: ids of the same tokens; each run of equal ids is one document.
        logit_softcap: logits x become cap * tanh(x / cap), as in Gemma-2.
        chunk_tokens: number of tokens whose logits are held at once.

    Returns:
        A scalar in fp32 (fp64 for fp64 input); 0 if no token has a target.
    """
    # Tokens without a target are computed, then masked: selecting the others would make the host
    # wait for the device. Rows are flattened without a copy.
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
        autocast_type(hidden_MD) or hidden_MD.dtype,
        logit_softcap,
    )
    return total / has_target_BT.sum().clamp(min=1)


def targets(input_ids_BT: Tensor, document_ids_BT: Tensor | None) -> Tensor:
    """Return which tokens are followed by one of the same document, bool [B, T - 1]."""
    if document_ids_BT is None:
        return torch.ones_like(input_ids_BT[:, 1:], dtype=torch.bool)
    return document_ids_BT[:, 1:] == document_ids_BT[:, :-1]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies whose gradient is computed chunk by chunk in the forward pass.

    This saves the second pass over the output embedding that checkpointed chunks would need.
    Products are computed in the compute dtype; their sum over chunks, the gradient of the output
    embedding, is accumulated in fp32: bf16 would lose the later chunks.
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
        """Return the sum over tokens; save the gradients for the backward pass."""
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
                # Rows without a target are masked here, where they are narrowest.
                no_target_C1 = (target_M[part] == NO_TARGET)[:, None]
                if hidden_grad_MD is not None:
                    grad_CD = logits_grad_CV @ weight_VD
                    hidden_grad_MD[part] = grad_CD.masked_fill_(no_target_C1, 0.0)
                if weight_grad_VD is not None:
                    hidden_CD = hidden_CD.masked_fill(no_target_C1, 0.0)
                    add_weight_gradient(weight_grad_VD, logits_grad_CV, hidden_CD)
                # Free this chunk's logits before the next chunk's are allocated.
                del logits_grad_CV
        ctx.save_for_backward(hidden_grad_MD, weight_grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the saved gradients by the gradient of the sum."""
        return *scaled_gradients(ctx, *grad_outputs), None, None, None, None


def add_weight_gradient(total_VD: Tensor, logits_grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add a chunk's gradient of the output embedding to a sum, which may be wider than its inputs.

    Args:
        total_VD: changed in place.
        logits_grad_CV: gradient of the chunk's logits.
        hidden_CD: input of the LM head, in the same dtype.
    """
    if total_VD.dtype == hidden_CD.dtype:
        total_VD.addmm_(logits_grad_CV.T, hidden_CD)
    else:
        total_VD += product(logits_grad_CV.T, hidden_CD, total_VD.dtype)


def scaled_gradients(ctx: Any, grad_output: Tensor) -> Iterator[Tensor | None]:
    """Yield the gradients that a forward pass saved, times the gradient of its output."""
    for saved in ctx.saved_tensors:
        yield None if saved is None else saved * grad_output.to(saved.dtype)


def _loss_and_gradient(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    target_C: Tensor,
    softcap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return a chunk's summed loss and, if needed, its gradient with respect to the logits.

    Gradient rows of tokens without a target are not zeroed here; the caller masks them.
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
