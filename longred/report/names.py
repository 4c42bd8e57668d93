"""The names of metrics for readers: the same in `show`, `compare`, `evaluate` and the pages.

MLflow and the journals have the keys; every key has one name, and every table takes it from here.
"""

ORIGINAL, RESCALED = "original", "rescaled"
"""The two models beside the trained ones: before the extension, and extended without training."""

MODEL = "model"
SHORT_AVERAGE = "short average"
SHORT_RETENTION = "short retention"
RULER = "RULER"
RULER_V2 = "RULER v2"
AVERAGE = "average"
SIMILARITY = "similarity"
ATTENTION_KL = "attention KL"
NATS = "nats/token"
UNPARSED = "unparsed"
BUILT_IN = " (built-in)"
"""Behind the name of a RULER task that asks the packaged question set."""
RETENTION = "retention"
RUN_TEXT = "the run's own data"
"""What the text of `NATS` is held out from, unless `longred evaluate` measures another."""

NAMES = {
    "capacity/short": SHORT_AVERAGE,
    "retention/short": SHORT_RETENTION,
    "ruler/average": RULER,
    "retention/ruler": f"{RULER} {RETENTION}",
    "ruler_v2/average": RULER_V2,
    "retention/ruler_v2": f"{RULER_V2} {RETENTION}",
    "similarity/last": SIMILARITY,
    "similarity/attention_kl": ATTENTION_KL,
    "held_out/nats_per_token": NATS,
    "held_out/bits_per_byte": "bits/byte",
}
"""Metric key → its name, for metrics that are not named after a task or a capacity."""


BY_STEP = {
    "short_average": SHORT_AVERAGE,
    "ruler": RULER,
    "retention": SHORT_RETENTION,
    "similarity": SIMILARITY,
    "attention_kl": ATTENTION_KL,
}
"""Measure of a student that a training saved on the way → its name."""


def metric_name(key: str, length: int = 0, mark: str = "") -> str:
    """Return the name of a metric.

    Args:
        key: a metric's key, without the name of the model.
        length: tokens at which a RULER metric was measured; the training step of a `by_step`
            metric; 0 for any other metric.
        mark: behind the name of a task, see `BUILT_IN`.
    """
    group, _, part = key.partition("/")
    if key in ("ruler/average", "ruler_v2/average"):
        return ruler_name(length, NAMES[key])
    if group == "by_step":
        return f"{BY_STEP.get(part, part)} after step {length:,}"
    name = NAMES.get(key) or (f"{part} {RETENTION}" if group == "retention" else part) or key
    return f"{name}{mark} at {length:,}" if length else name


def ruler_name(length: int, version: str = RULER) -> str:
    """Return the name of the average over RULER, or RULER v2, at a length in tokens."""
    return f"{version} {length:,}"


def ruler_version(column: str) -> str | None:
    """Return the version of RULER that a column is about, or None."""
    return next((each for each in (RULER_V2, RULER) if column.startswith(f"{each} ")), None)


def by_importance(columns: list[str]) -> list[str]:
    """Return the columns of a result table, the most important first, for a narrow screen."""
    longest_first = columns[::-1]
    rulers = [each for each in longest_first if ruler_version(each) == RULER]
    rulers += [each for each in longest_first if ruler_version(each) == RULER_V2]
    first = [SHORT_AVERAGE, SHORT_RETENTION, *rulers, UNPARSED, AVERAGE]
    first += [SIMILARITY, NATS]
    known = [column for column in first if column in columns]
    return known + [column for column in columns if column not in known]
