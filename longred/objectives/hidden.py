"""Distances of the student's hidden states from the teacher's. Source: arXiv 2502.07365, section 4.

Shapes: B rows, T tokens, D hidden dimension.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.precision import at_least_fp32


def cosine_distance(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Return 1 - the mean cosine of paired vectors, as a scalar in fp32 (fp64 for fp64 inputs).

    Inputs in lower precision are raised first: in bf16 the loss of a 1 % deviation reads 0 and its
    gradient is wrong by 44 %. Taken as half the squared distance of the unit vectors, which is the
    same number without the cancellation: equal inputs give exactly 0, and no gradient.
    """
    precise = at_least_fp32(student_BTD.dtype)
    student_BTD = F.normalize(student_BTD.to(precise), dim=-1)
    teacher_BTD = F.normalize(teacher_BTD.to(precise), dim=-1)
    return (student_BTD - teacher_BTD).square().sum(dim=-1).mean() / 2


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
