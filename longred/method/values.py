"""Types of plain values that a `TrainingJob` and the recipe's sections check alike.

The bounds stand in the annotations. A job reads them with `value_problem`; pydantic calls the hook
of `Bounds`, so this file needs no pydantic.
"""

import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

_T = TypeVar("_T")

UNDIGESTED = "undigested"
Undigested = Annotated[_T, UNDIGESTED]
"""A field that stays out of every digest: it cannot change a result, or the content it points to is
hashed instead."""

_COMPARISONS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (operator.ge, "{} or more"),
    "gt": (operator.gt, "above {}"),
    "lt": (operator.lt, "below {}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of a number, by pydantic's names; None means unbounded."""

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None

    def given(self) -> dict[str, float]:
        """Return the bounds that are set."""
        return {name: bound for name, bound in asdict(self).items() if bound is not None}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Add the bounds to pydantic's schema of the number."""
        return {**handler(source), **self.given()}


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
    notes: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
    if get_origin(kind) is Literal and value not in get_args(kind):
        return f"{value!r} is not one of {', '.join(get_args(kind))}"
    for note in notes:
        for name, bound in note.given().items() if isinstance(note, Bounds) else ():
            holds, words = _COMPARISONS[name]
            if not holds(value, bound):
                return f"must be {words.format(f'{bound:g}')}, got {value}"
    return None
