"""Progress of a stage."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the number of finished items, the total number, and a text to display."""


def duration(seconds: float) -> str:
    """Return a duration in its largest units, such as `2 h 5 min`."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
