"""What a study compares: names of measures, their words, and how they are read from a cell."""

from collections.abc import Sequence
from dataclasses import dataclass

from longred.study.result import Cell, ModelScores

STUDENT, ORIGINAL, RESCALED = "student", "original", "rescaled"


@dataclass(frozen=True, slots=True)
class Measure:
    """How a measure is shown.

    Attributes:
        text: its name for readers.
        digits: digits after the point.
    """

    text: str
    digits: int = 1


def measure_of(name: str) -> Measure:
    """Return how a measure is shown.

    Names: `short_average`, `short_retention`, `average`, `similarity`, `attention_kl`,
    `nats_per_token`, `ruler` (mean over the lengths beyond the original window), `ruler.LENGTH`,
    `capacity.NAME`, `task.NAME`, `tokens`, `flops`, `seconds`, `tokens_to_retention.PERCENT`,
    `tokens_to_ruler.PERCENT`.
    """
    group, _, part = name.partition(".")
    simple = {
        "short_average": Measure("short average"),
        "short_retention": Measure("short retention"),
        "average": Measure("average"),
        "similarity": Measure("similarity", 4),
        "attention_kl": Measure("attention KL", 4),
        "nats_per_token": Measure("nats/token", 3),
        "ruler": Measure("RULER"),
        "tokens": Measure("training tokens", 0),
        "flops": Measure("training FLOPs", 0),
        "seconds": Measure("training seconds", 0),
    }
    if not part and group in simple:
        return simple[group]
    if group == "ruler" and part.isdigit():
        return Measure(f"RULER {int(part):,}")
    if group == "tokens_to_retention":
        return Measure(f"tokens until {part} % retention", 0)
    if group == "tokens_to_ruler":
        return Measure(f"tokens until RULER {part}", 0)
    if part and group in ("capacity", "task"):
        return Measure(part)
    raise ValueError(f"{name}: no such measure")


def value_of(cell: Cell, name: str, model: str = STUDENT) -> float | None:
    """Return a measure of one of a cell's models; None if it is unknown.

    Args:
        cell: a finished run.
        name: as `measure_of` lists them.
        model: key of `Cell.models`.
    """
    scores = cell.models.get(model)
    if name in ("tokens", "flops", "seconds"):
        return None if cell.training is None else float(getattr(cell.training, name))
    if scores is None:
        return None
    group, _, part = name.partition(".")
    if group == "tokens_to_retention":
        return _tokens_until(cell, "short_retention", float(part))
    if group == "tokens_to_ruler":
        return _tokens_until(cell, "ruler", float(part))
    if group == "ruler":
        return scores.ruler.get(int(part)) if part else scores.ruler_average
    if group == "capacity":
        return scores.capacities.get(part)
    if group == "task":
        return scores.tasks.get(part)
    if group == "attention_kl":
        kl = scores.attention_kl_per_layer
        return sum(kl) / len(kl) if kl else None
    value: float | None = getattr(scores, name)
    return value


def saved_steps(cell: Cell) -> list[int]:
    """Return the steps at which a cell's student was saved and evaluated, the last step included.

    Empty if no student was saved before the last step.
    """
    steps = sorted(int(name) for name in cell.models if name.isdigit())
    if not steps or cell.training is None:
        return []
    return [*steps, cell.training.num_steps]


def at_step(cell: Cell, step: int) -> ModelScores:
    """Return the scores of a cell's student after a step; step 0 is the rescaled model."""
    if step == 0:
        return cell.models[RESCALED]
    return cell.models.get(str(step)) or cell.models[STUDENT]


def common_steps(cells: Sequence[Cell]) -> list[int]:
    """Return the saved steps that all cells have, ascending."""
    found = [set(saved_steps(cell)) for cell in cells]
    return sorted(set.intersection(*found)) if found else []


def _tokens_until(cell: Cell, name: str, wanted: float) -> float | None:
    """Return the tokens after which a saved student first reaches a score; None if none does."""
    for step in saved_steps(cell):
        model = str(step) if str(step) in cell.models else STUDENT
        value = value_of(cell, name, model)
        if value is not None and value >= wanted and cell.training is not None:
            return cell.training.tokens * step / cell.training.num_steps
    return None
