"""How far the student's attention and hidden states are from the teacher's, layer by layer.

Both models run side by side, one decoder layer of each at a time, so that no more than two layers'
states exist at once. Shapes: N blocks or decoder layers, B rows, T tokens, H heads, D hidden
dimension.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from longred.attention import ATTENTION_NAME, Captured
from longred.errors import NonFiniteLossError
from longred.models import run_layers
from longred.profiling.attention_kl import attention_kl
from longred.progress import Progress

"""Told the number of rows done, the number of all rows, and a word."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Distances of the student from the teacher on the same text; lists run over layers.

    Attributes:
        num_layers: N, the number of decoder layers.
        num_heads: H, the number of query heads of a layer.
        num_tokens: tokens measured.
        attention_kl: mean KL(teacher || student) per query, nats; decoder layers 0 to N - 1.
        attention_kl_per_head: the same for every head.
        hidden_similarity: mean cosine per token; hidden states 1 to N, the last after the norm.
        hidden_similarity_std: standard deviation of the cosine over tokens.
    """

    num_layers: int
    num_heads: int
    num_tokens: int
    attention_kl: list[float]
    attention_kl_per_head: list[list[float]]
    hidden_similarity: list[float]
    hidden_similarity_std: list[float]

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as plain JSON values."""
        return asdict(self)


def profile_drift(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids_NT: Tensor,
    *,
    batch_rows: int,
    on_progress: Progress | None = None,
) -> Drift:
    """Measure attention KL and hidden similarity on rows of one document each.

    Args:
        teacher: the original model, with attention `longred`.
        student: the extended model, with attention `longred`.
        input_ids_NT: the text.
        batch_rows: rows run at once.
        on_progress: told after every batch.

    Raises:
        ValueError: the models differ in more than weights and RoPE, or there is no text.
    """
    return _measure(teacher, student, input_ids_NT, batch_rows, True, on_progress)


def hidden_similarity(
    teacher: PreTrainedModel, student: PreTrainedModel, input_ids_NT: Tensor, *, batch_rows: int
) -> list[float]:
    """Return the mean cosine of paired hidden states 1 to N over all tokens.

    Args:
        teacher: the original model, with attention `longred`.
        student: the extended model, with attention `longred`.
        input_ids_NT: the text.
        batch_rows: rows run at once.

    Raises:
        ValueError: the models differ in more than weights and RoPE, or there is no text.
    """
    return _measure(teacher, student, input_ids_NT, batch_rows, False, None).hidden_similarity


class _Sums:
    """Sums over tokens, in float64, of one layer's KL by head and of its cosine and its square."""

    def __init__(self, num_layers: int, num_heads: int) -> None:
        self.kl_NH = torch.zeros(num_layers, num_heads, dtype=torch.float64)
        self.cosine_N = torch.zeros(num_layers, dtype=torch.float64)
        self.square_N = torch.zeros(num_layers, dtype=torch.float64)

    def add_hidden(self, layer: int, teacher_BTD: Tensor, student_BTD: Tensor) -> None:
        student_BTD = student_BTD.to(teacher_BTD.device).float()
        cosine_BT = F.cosine_similarity(teacher_BTD.float(), student_BTD, dim=-1).double()
        self.cosine_N[layer] += cosine_BT.sum().cpu()
        self.square_N[layer] += cosine_BT.square().sum().cpu()

    def add_attention(self, layer: int, teacher: Captured, student: Captured) -> None:
        kl_BHT = attention_kl(
            teacher.query_BHTd,
            teacher.key_BhTd,
            student.query_BHTd.to(teacher.query_BHTd),
            student.key_BhTd.to(teacher.key_BhTd),
            scale=teacher.scale,
            sliding_window=teacher.sliding_window,
            softcap=teacher.softcap,
        )
        self.kl_NH[layer] += kl_BHT.sum(dim=(0, 2), dtype=torch.float64).cpu()


@torch.no_grad()
def _measure(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids_NT: Tensor,
    batch_rows: int,
    with_attention: bool,
    on_progress: Progress | None,
) -> Drift:
    _check(teacher, student, input_ids_NT)
    num_layers, num_heads = teacher.config.num_hidden_layers, teacher.config.num_attention_heads
    num_rows, num_tokens = input_ids_NT.shape[0], input_ids_NT.numel()
    sums = _Sums(num_layers, num_heads)
    for start in range(0, num_rows, batch_rows):
        rows_BT = input_ids_NT[start : start + batch_rows]
        pairs = zip(run_layers(teacher, rows_BT), run_layers(student, rows_BT), strict=True)
        for layer, (original, extended) in enumerate(pairs):
            sums.add_hidden(layer, original.hidden_BTD, extended.hidden_BTD)
            if with_attention:
                sums.add_attention(layer, original.captured, extended.captured)
        if on_progress is not None:
            on_progress(min(start + batch_rows, num_rows), num_rows, "rows")
    kl_NH = sums.kl_NH / num_tokens
    mean_N = sums.cosine_N / num_tokens
    _check_finite(kl_NH, mean_N)
    variance_N = (sums.square_N / num_tokens - mean_N.square()).clamp_min(0.0)
    return Drift(
        num_layers=num_layers,
        num_heads=num_heads,
        num_tokens=num_tokens,
        attention_kl=kl_NH.mean(dim=1).tolist(),
        attention_kl_per_head=kl_NH.tolist(),
        hidden_similarity=mean_N.tolist(),
        hidden_similarity_std=variance_N.sqrt().tolist(),
    )


def _check_finite(kl_NH: Tensor, similarity_N: Tensor) -> None:
    finite_N = torch.isfinite(kl_NH).all(dim=1) & torch.isfinite(similarity_N)
    if not bool(finite_N.all()):
        layer = int((~finite_N).nonzero()[0])
        raise NonFiniteLossError(
            f"the drift of decoder layer {layer} is not finite; check the weights of both models, "
            "or measure in float32"
        )


def _check(teacher: PreTrainedModel, student: PreTrainedModel, input_ids_NT: Tensor) -> None:
    if input_ids_NT.ndim != 2 or not input_ids_NT.numel():
        raise ValueError(f"input_ids_NT must hold rows of tokens, got {tuple(input_ids_NT.shape)}")
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"):
        values = [getattr(model.config, name) for model in (teacher, student)]
        if values[0] != values[1]:
            raise ValueError(f"teacher and student differ in {name}: {values[0]} and {values[1]}")
    for model in (teacher, student):
        if model.config._attn_implementation != ATTENTION_NAME:
            raise ValueError("drift needs models loaded with attention='longred'")
