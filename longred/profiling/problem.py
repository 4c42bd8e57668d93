"""What the attention KL compares and what it leaves of every query; both backends share these."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Statistics(NamedTuple):
    """Of every query: the KL, and the logarithm of the sum of exponentials of either model."""

    kl_BHT: Tensor
    teacher_lse_BHT: Tensor
    student_lse_BHT: Tensor


class Problem(NamedTuple):
    """What is compared, and which keys a query sees: those from `first_BT` to its own."""

    teacher_query_BHTd: Tensor
    teacher_key_BhTd: Tensor
    student_query_BHTd: Tensor
    student_key_BhTd: Tensor
    scale: float
    first_BT: Tensor | None
    softcap: float | None = None

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """Return the problem with its queries and keys changed, and all else as it is."""
        return self._replace(
            teacher_query_BHTd=change(self.teacher_query_BHTd),
            teacher_key_BhTd=change(self.teacher_key_BhTd),
            student_query_BHTd=change(self.student_query_BHTd),
            student_key_BhTd=change(self.student_key_BhTd),
        )
