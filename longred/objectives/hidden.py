"""Distances between hidden states of student and teacher. Source: arXiv 2502.07365, section 4.

Shapes: B rows, T tokens, D hidden dimension.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.precision import at_least_fp32


def cosine_distance(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Return 1 - mean cosine of paired vectors, a scalar in fp32 (fp64 for fp64 inputs).

    Inputs are cast up first: in bf16 the loss of a 1 % deviation rounds to 0 and its gradient is
    off by 44 %. Computed as half the squared distance of the unit vectors: the same value without
    cancellation, so that equal inputs give exactly 0 and no gradient.
    """
    precise = at_least_fp32(student_BTD.dtype)
    student_BTD = F.normalize(student_BTD.to(precise), dim=-1)
    teacher_BTD = F.normalize(teacher_BTD.to(precise), dim=-1)
    return (student_BTD - teacher_BTD).square().sum(dim=-1).mean() / 2


def paired_layers(student: Mapping[int, object], teacher: Mapping[int, object]) -> list[int]:
    """Return the layers of both models in ascending order.

    Raises:
        ValueError: the mappings have different layers, or none.
    """
    if not student or student.keys() != teacher.keys():
        raise ValueError(
            "student and teacher must hold the same layers, at least one: "
            f"{sorted(student)} and {sorted(teacher)}"
        )
    return sorted(student)


def short_distill_loss(student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
    """Return the sum of the cosine distances of the distilled layers (section 4.2).

    Args:
        student: hidden_BTD by `hidden_states` index (1 to N).
        teacher: the same layers of the teacher.

    Raises:
        ValueError: the mappings have different layers, or none.
    """
    layers = paired_layers(student, teacher)
    return torch.stack([cosine_distance(student[layer], teacher[layer]) for layer in layers]).sum()


def short_to_long_loss(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Return the cosine distance of the last hidden states (section 4.3).

    Args:
        student_BTD: hidden state N of the student, at skipped positions.
        teacher_BTD: hidden state N of the teacher, at positions 0 to T - 1.
    """
    return cosine_distance(student_BTD, teacher_BTD)
