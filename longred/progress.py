"""How a stage says how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and a text to show beside them."""


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
