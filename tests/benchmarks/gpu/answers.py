"""Measure RULER-like prompts: tokens read and generated per second, and scoring time."""

import generation

from gpu.child import Check
from gpu.sizes import scale_of


def measure(check: Check) -> None:
    """Measure each prompt length of the scale."""
    preset, lengths, new = scale_of(check).generation
    found = generation.measure(preset, lengths, new)
    for length in lengths:
        row = found[str(length)]
        planned = {"read_seconds": row.pop("planned_seconds")}
        settings = {"length": length, "new_tokens": new, "dtype": found["dtype"]}
        check.line(str(length), settings=settings, measured=row, planned=planned)
