"""Types of plain values that a `TrainingJob` and the recipe's sections check alike.

The bounds stand in the annotations. A job reads them with `value_problem`; pydantic calls the hook
of `Bounds`, so this file needs no pydantic.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

_T = TypeVar("_T")

UNDIGESTED = "undigested"
Undigested = Annotated[_T, UNDIGESTED]
"""A field that stays out of every digest, because it cannot change a result."""
BY_CONTENT = "by content"
ByContent = Annotated[_T, UNDIGESTED, BY_CONTENT]
"""A field that chooses what is read, such as a file or model: what is read is hashed instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of a number, by pydantic's names."""

    ge: float = -math.inf
    gt: float = -math.inf
    lt: float = math.inf

    def __get_pydantic_core_schema__(
        self, source: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Add the bounds to pydantic's schema of the number."""
        bounds = {name: bound for name, bound in asdict(self).items() if math.isfinite(bound)}
        return {**handler(source), **bounds}

    def problem(self, value: float) -> str | None:
        """Return which bound a number violates, or None."""
        if not value >= self.ge:
            return f"must be {self.ge:g} or more, got {value}"
        if not value > self.gt:
            return f"must be above {self.gt:g}, got {value}"
        if not value < self.lt:
            return f"must be below {self.lt:g}, got {value}"
        return None


Count = Annotated[int, Bounds(ge=1)]
CountOrZero = Annotated[int, Bounds(ge=0)]
Positive = Annotated[float, Bounds(gt=0.0)]
NonNegative = Annotated[float, Bounds(ge=0.0)]
Share = Annotated[float, Bounds(ge=0.0, lt=1.0)]
Device = Literal["auto", "cpu", "cuda"]


def value_problem(kind: Any, value: Any) -> str | None:
    """Return why a value does not fit its annotated type, or None.

    Args:
        kind: the annotation, with its extras; bounds and choices are checked, types are not.
        value: the value.
    """
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = (other for other in get_args(kind) if other is not type(None))
    notes: list[Any] = []
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
    if get_origin(kind) is Literal and value not in get_args(kind):
        return f"{value!r} is not one of {', '.join(get_args(kind))}"
    problems = (note.problem(value) for note in notes if isinstance(note, Bounds))
    return next(filter(None, problems), None)
