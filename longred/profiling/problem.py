"""Inputs and results of the attention KL, shared by its torch and Triton implementations."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Statistics(NamedTuple):
    """Per query: the KL, and the log-sum-exp of each model's logits."""

    kl_BHT: Tensor
    teacher_lse_BHT: Tensor
    student_lse_BHT: Tensor


class Problem(NamedTuple):
    """Inputs of one KL; a query sees the keys from `first_BT` to its own."""

    teacher_query_BHTd: Tensor
    teacher_key_BhTd: Tensor
    student_query_BHTd: Tensor
    student_key_BhTd: Tensor
    scale: float
    first_BT: Tensor | None
    softcap: float | None = None

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """Return the problem with `change` applied to its queries and keys."""
        return self._replace(
            teacher_query_BHTd=change(self.teacher_query_BHTd),
            teacher_key_BhTd=change(self.teacher_key_BhTd),
            student_query_BHTd=change(self.student_query_BHTd),
            student_key_BhTd=change(self.student_key_BhTd),
        )
