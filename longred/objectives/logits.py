"""KL between the next-token distributions of teacher and student, without the logits of all tokens.

The idea is that of knowledge distillation (arXiv 1503.02531); LongReD distils hidden states.

Shapes: B rows, T tokens, M = B x T, C tokens of a chunk, D hidden dimension, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.cross_entropy import add_weight_gradient, scaled_gradients
from longred.objectives.precision import at_least_fp32, autocast_type


class HeadInputs(NamedTuple):
    """Inputs of a model's LM head; their product is its logits.

    Attributes:
        hidden_BTD: hidden states after the final norm.
        weight_VD: the output embedding.
    """

    hidden_BTD: Tensor
    weight_VD: Tensor


def logit_distill_loss(
    student: HeadInputs,
    teacher: HeadInputs,
    *,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Return the mean over tokens of KL(teacher || student) over the vocabulary, in nats.

    Both models' logits are divided by the temperature, and the KL is multiplied by its square, so
    that the size of the gradient hardly depends on it. Only the student gets a gradient. Three
    tensors of `chunk_tokens` x V exist at a time, whatever the number of tokens.

    Args:
        student: inputs of its LM head.
        teacher: the same of the teacher; its hidden states may have another size.
        temperature: above 0; larger ones compare unlikely tokens more.
        logit_softcap: logits x of both models become cap * tanh(x / cap), as in Gemma-2.
        chunk_tokens: number of tokens whose logits are computed at once.

    Returns:
        A scalar in fp32 (fp64 for fp64 input).
    """
    hidden_MD = student.hidden_BTD.flatten(0, -2)
    total: Tensor = _ChunkedKl.apply(  # type: ignore[no-untyped-call]
        hidden_MD,
        student.weight_VD,
        teacher.hidden_BTD.detach().flatten(0, -2),
        teacher.weight_VD.detach(),
        chunk_tokens,
        autocast_type(hidden_MD) or hidden_MD.dtype,
        logit_softcap,
        temperature,
    )
    return total / len(hidden_MD)


class _ChunkedKl(torch.autograd.Function):
    """Sum of KLs whose gradient is computed chunk by chunk in the forward pass.

    Precision is that of `longred.objectives.cross_entropy`: products in the compute dtype, their
    sum over chunks in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        teacher_MD: Tensor,
        teacher_VD: Tensor,
        chunk_tokens: int,
        dtype: torch.dtype,
        softcap: float | None,
        temperature: float,
    ) -> Tensor:
        """Return the sum over tokens; save the gradients for the backward pass."""
        total = torch.zeros((), dtype=at_least_fp32(hidden_MD.dtype), device=hidden_MD.device)
        hidden_grad_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        weight_grad_VD = None
        if ctx.needs_input_grad[1]:
            weight_grad_VD = torch.zeros_like(weight_VD, dtype=at_least_fp32(weight_VD.dtype))
        with torch.autocast(hidden_MD.device.type, enabled=False):
            weight_VD, teacher_VD = weight_VD.to(dtype), teacher_VD.to(dtype)
            for start in range(0, len(hidden_MD), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                hidden_CD = hidden_MD[part].to(dtype)
                loss, logits_grad_CV = _loss_and_gradient(
                    (hidden_CD, weight_VD),
                    (teacher_MD[part].to(dtype), teacher_VD),
                    softcap,
                    temperature,
                )
                total += loss
                if hidden_grad_MD is not None:
                    hidden_grad_MD[part] = logits_grad_CV @ weight_VD
                if weight_grad_VD is not None:
                    add_weight_gradient(weight_grad_VD, logits_grad_CV, hidden_CD)
                # Free this chunk's logits before the next chunk's are allocated.
                del logits_grad_CV
        ctx.save_for_backward(hidden_grad_MD, weight_grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the saved gradients by the gradient of the sum."""
        return *scaled_gradients(ctx, *grad_outputs), *(None,) * 6


def _loss_and_gradient(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    softcap: float | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return a chunk's summed loss and its gradient with respect to the student's logits.

    With teacher p and student q at temperature t: the loss is t^2 sum p (log p - log q), and its
    gradient t (q - p), times the slope of the soft cap. The sum adds q - p, whose sum is 0: then no
    summand is negative, and rounded log-sum-exps, which shift all summands, cancel.
    """
    log_p_CV, _ = _log_probs(*teacher, softcap, temperature)
    log_q_CV, slope_CV = _log_probs(*student, softcap, temperature)
    p_CV = log_p_CV.exp()
    excess_CV = log_p_CV.sub_(log_q_CV).mul_(p_CV)
    gradient_CV = log_q_CV.exp_().sub_(p_CV)
    loss = excess_CV.add_(gradient_CV).sum() * temperature**2
    del log_p_CV, excess_CV
    if temperature != 1.0:
        gradient_CV.mul_(temperature)
    if slope_CV is not None:
        gradient_CV.mul_(slope_CV)
    return loss, gradient_CV.to(student[0].dtype)


def _log_probs(
    hidden_CD: Tensor, weight_VD: Tensor, softcap: float | None, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probabilities of a model's tokens in fp32, and the slope of its soft cap."""
    precise = at_least_fp32(hidden_CD.dtype)
    slope_CV = None
    logits_CV = F.linear(hidden_CD, weight_VD)
    if softcap is not None:
        logits_CV = torch.tanh(logits_CV.to(precise) / softcap)
        slope_CV = 1.0 - logits_CV.square()
        logits_CV = softcap * logits_CV
    if temperature != 1.0:
        logits_CV = logits_CV.to(precise) / temperature
    return logits_CV.log_softmax(dim=-1, dtype=precise), slope_CV
