"""Progress of a stage, and durations and sizes in words."""

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
    if minutes >= 2:
        return f"{minutes:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 1 or seconds <= 0 else "under 1 s"


def size(num_bytes: float) -> str:
    """Return a number of bytes in its largest binary unit, such as `1.5 GiB` or `340 MiB`."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.1f} GiB"
    if num_bytes >= 2**20:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**10:.0f} KiB"
