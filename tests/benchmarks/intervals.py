"""Simulate how often 95 % intervals of scores hold the true value, and how wide they are.

    python tests/benchmarks/intervals.py --output tests/benchmarks/results/intervals.md

Two models answer the same random samples of tasks again and again. Their true scores are known, so
the intervals that hold them can be counted: of one model's average, of the difference of the two,
and of their ratio. `longred.evaluation.intervals` is compared with what it replaced, the score and
1.96 standard errors on both sides and the percentile bootstrap over samples, and with itself
without continuity correction. About fifteen minutes on one core.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from longred.evaluation import intervals
from longred.evaluation.intervals import Averages, Draws

Floats = npt.NDArray[np.float64]
Ends = tuple[Floats, Floats]

STATISTICS = ("score", "difference", "ratio")
NUM_QUANTILES = 4000
NUM_RESAMPLES = 1000
CLOSE = 0.945
"""Settings with a lower coverage are simulated again, with ten times the repetitions."""
LOWEST_REFERENCE = 0.5
"""A ratio to a model below this rate is not simulated; the report drops most such tasks."""


@dataclass(frozen=True)
class Design:
    """Number of samples and weight of every task."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __str__(self) -> str:
        """Return a short name."""
        sizes = f"{self.sizes[0]}" if len(set(self.sizes)) == 1 else ", ".join(map(str, self.sizes))
        name = f"{len(self.sizes)} x {sizes}" if len(self.sizes) > 1 else sizes
        return name if len(set(self.weights)) == 1 else f"{name}, unequal weights"


DESIGNS = (
    *(Design((size,), (1.0,)) for size in (20, 50, 100, 500)),
    Design((20,) * 4, (0.55, 0.25, 0.15, 0.05)),
    Design((20, 100, 50, 500), (0.25,) * 4),
    Design((20,) * 13, (1 / 13,) * 13),
    Design((100,) * 13, (1 / 13,) * 13),
)
RATES = (
    *((0.5, 0.5), (0.6, 0.7), (0.8, 0.8), (0.9, 0.8), (0.95, 0.95), (0.97, 0.99), (0.99, 0.99)),
    *((0.99, 0.6), (0.05, 0.9), (0.01, 0.99), (0.3, 0.5), (0.1, 0.1), (0.02, 0.05)),
)
CORRELATIONS = {"binary": (0.0, 0.5, 0.9), "quarters": (0.5,), "f1": (0.5,)}
"""Kind of scores → correlations of the two models."""


def quantiles(kind: str, rate: float) -> Floats:
    """Return equally likely scores in percent whose mean is near `100 * rate`.

    Args:
        kind: `binary`; `quarters`, four parts of which each is right or wrong; `f1`, half of the
            answers wholly right or wrong and the others in between.
        rate: success rate.
    """
    place = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    if kind == "binary":
        return 100.0 * (place > 1 - rate)
    if kind == "quarters":
        return 25.0 * binom.ppf(place, 4, rate)
    between = np.clip((place - 0.5 * (1 - rate)) / 0.5, 1e-6, 1 - 1e-6)
    inner = beta.ppf(between, 2 * rate + 0.05, 2 * (1 - rate) + 0.05)
    wrong, right = place < 0.5 * (1 - rate), place > 1 - 0.5 * rate
    return 100.0 * np.where(wrong, 0.0, np.where(right, 1.0, inner))


@dataclass(frozen=True)
class Simulated:
    """Repetitions of one evaluation of two models.

    Attributes:
        design: the tasks.
        tasks: [2, num_repetitions, num_samples] in percent for each task.
        true: the true value of each of `STATISTICS`.
    """

    design: Design
    tasks: list[Floats]
    true: dict[str, float]


def simulate(
    design: Design,
    kind: str,
    rates: tuple[float, float],
    correlation: float,
    num_repetitions: int,
    rng: np.random.Generator,
) -> Simulated:
    """Draw repetitions; with probability `correlation` a sample is as hard for both models."""
    tables = [quantiles(kind, rate) for rate in rates]
    tasks = []
    for size in design.sizes:
        shape = (num_repetitions, size)
        first = rng.integers(NUM_QUANTILES, size=shape)
        own = rng.integers(NUM_QUANTILES, size=shape)
        second = np.where(rng.random(shape) < correlation, first, own)
        tasks.append(np.stack([tables[0][first], tables[1][second]]))
    ours, theirs = (float(table.mean()) for table in tables)
    true = {"score": ours, "difference": ours - theirs, "ratio": 100 * ours / theirs}
    return Simulated(design, tasks, true)


def ends_of(found: Simulated, statistic: str) -> Ends:
    """Return the intervals of all repetitions."""
    draws = [Draws(task, np.full(task.shape[-1], 1 / task.shape[-1])) for task in found.tasks]
    averages = Averages(draws, found.design.weights)
    if statistic == "score":
        return averages.mean()
    return averages.difference() if statistic == "difference" else averages.ratio()


def replaced_ends(found: Simulated, statistic: str, rng: np.random.Generator) -> Ends:
    """Return the intervals as they were: standard errors for a score, else a bootstrap."""
    weights = np.array(found.design.weights)
    if statistic == "score":
        scores = np.stack([task[0].mean(-1) for task in found.tasks], axis=-1) @ weights
        variances = [task[0].var(-1) / task.shape[-1] for task in found.tasks]
        reach = 1.96 * np.sqrt(np.stack(variances, axis=-1) @ weights**2)
        return np.maximum(scores - reach, 0.0), np.minimum(scores + reach, 100.0)
    low, high = [], []
    for number in range(found.tasks[0].shape[1]):
        averages = np.zeros((2, NUM_RESAMPLES))
        for task, weight in zip(found.tasks, weights, strict=True):
            size = task.shape[-1]
            chosen = rng.integers(size, size=(NUM_RESAMPLES, size))
            averages += weight * task[:, number][:, chosen].mean(-1)
        ours, theirs = averages
        values = ours - theirs
        if statistic == "ratio":
            values = 100 * ours / np.maximum(theirs, 1e-9)
        ends = np.percentile(values, [2.5, 97.5])
        low.append(ends[0])
        high.append(ends[1])
    return np.array(low), np.array(high)


def coverage(ends: Ends, true: float) -> float:
    """Return the share of intervals that hold the true value."""
    return float(np.mean((ends[0] <= true + 1e-6) & (ends[1] >= true - 1e-6)))


def width(ends: Ends) -> float:
    """Return the median width."""
    return float(np.median(ends[1] - ends[0]))


@contextmanager
def continuity_correction(step: float) -> Iterator[None]:
    """Use another continuity correction."""
    before, intervals._STEP = intervals._STEP, step
    try:
        yield
    finally:
        intervals._STEP = before


@dataclass(frozen=True)
class Cell:
    """Coverage and width in one setting.

    Attributes:
        design, statistic, kind, rates, correlation: the setting.
        found: coverage and median width.
        uncorrected: coverage without continuity correction; of scores only.
        replaced: coverage and median width of what was replaced; of some settings only.
    """

    design: str
    statistic: str
    kind: str
    rates: tuple[float, float]
    correlation: float
    found: tuple[float, float]
    uncorrected: float | None
    replaced: tuple[float, float] | None


def cells(
    designs: Sequence[Design], num_repetitions: int, num_replaced: int, seed: int = 0
) -> Iterator[Cell]:
    """Simulate every setting; the replaced intervals for binary scores only."""
    rng = np.random.default_rng(seed)
    settings = [(k, r, c) for k, found in CORRELATIONS.items() for r in RATES for c in found]
    for design in designs:
        for kind, rates, correlation in settings:
            found = simulate(design, kind, rates, correlation, num_repetitions, rng)
            few = Simulated(design, [task[:, :num_replaced] for task in found.tasks], found.true)
            for statistic in STATISTICS:
                if statistic == "ratio" and rates[1] < LOWEST_REFERENCE:
                    continue
                ends, true = ends_of(found, statistic), found.true[statistic]
                uncorrected = None
                if statistic == "score":
                    with continuity_correction(0.0):
                        uncorrected = coverage(ends_of(found, statistic), true)
                replaced = None
                if kind == "binary" and correlation == 0.5:
                    old = replaced_ends(few, statistic, rng)
                    replaced = (coverage(old, true), width(old))
                pair = (coverage(ends, true), width(ends))
                if pair[0] < CLOSE:
                    # Most are chance: the lowest of many estimates is too low.
                    more = simulate(design, kind, rates, correlation, 10 * num_repetitions, rng)
                    pair = (coverage(ends_of(more, statistic), true), pair[1])
                yield Cell(
                    str(design), statistic, kind, rates, correlation, pair, uncorrected, replaced
                )


def page(found: Sequence[Cell], num_repetitions: int, num_replaced: int) -> str:
    """Return both tables in Markdown."""
    error = 100 * (0.95 * 0.05 / num_repetitions) ** 0.5
    lines = [
        "# Coverage of 95 % intervals",
        "",
        f"{datetime.now(UTC).date()}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, numpy {np.__version__}. Simulated by `intervals.py`: "
        f"{num_repetitions:,} repetitions a setting, {num_replaced:,} for what was replaced; the "
        f"standard error of a coverage of 95 % is {error:.1f} points. Settings below "
        f"{100 * CLOSE:.1f} % were simulated again, with ten times the repetitions.",
        "",
        "## Over all settings",
        "",
        f"Each row: {len(RATES)} pairs of success rates from .01 to .99; scores that are binary, "
        "with answers of the two models correlated by 0, .5 and .9, in quarter steps or like F1. "
        "`before`: the score ± 1.96 standard errors, and the percentile bootstrap; binary scores, "
        "correlation .5. `width`: of the new intervals, divided by the bootstrap's or the standard "
        "errors' where those cover 93 % or more; the mean over settings.",
        "",
        "| statistic | tasks x samples | lowest coverage | at | mean | lowest without correction | "
        "lowest before | width |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for statistic in STATISTICS:
        for design in dict.fromkeys(cell.design for cell in found):
            row = [cell for cell in found if (cell.design, cell.statistic) == (design, statistic)]
            worst = min(row, key=lambda cell: cell.found[0])
            old = [(cell, cell.replaced) for cell in row if cell.replaced is not None]
            ratios = [cell.found[1] / was[1] for cell, was in old if was[0] >= 0.93 and was[1] > 0]
            place = f"{worst.kind} {worst.rates[0]:g}, {worst.rates[1]:g}; {worst.correlation:g}"
            without = [cell.uncorrected for cell in row if cell.uncorrected is not None]
            columns = [
                statistic,
                design,
                f"{100 * worst.found[0]:.1f}",
                place,
                f"{100 * statistics.fmean(cell.found[0] for cell in row):.1f}",
                f"{100 * min(without):.1f}" if without else "n/a",
                f"{100 * min(was[0] for _, was in old):.1f}",
                f"{statistics.fmean(ratios):.2f}" if ratios else "n/a",
            ]
            lines.append(f"| {' | '.join(columns)} |")
    lines += [
        "",
        "## Binary scores, correlation .5",
        "",
        "Coverage in percent and median width in points (of the ratio: in percent).",
        "",
        "| tasks x samples | rates | score | before | difference | before | ratio | before |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    shown = [cell for cell in found if cell.replaced is not None]
    for design in ("20", "100", "4 x 20, unequal weights", "13 x 20", "13 x 100"):
        for rates in RATES:
            row = [cell for cell in shown if (cell.design, cell.rates) == (design, rates)]
            texts = {
                cell.statistic: " | ".join(
                    f"{100 * pair[0]:.1f}, {pair[1]:.1f}"
                    for pair in (cell.found, cell.replaced)
                    if pair
                )
                for cell in row
            }
            columns = " | ".join(texts.get(statistic, "n/a | n/a") for statistic in STATISTICS)
            if row:
                lines.append(f"| {design} | {rates[0]:g}, {rates[1]:g} | {columns} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--replaced", type=int, default=100, help="repetitions of the bootstrap")
    parser.add_argument("--output", type=Path, help="file of the tables")
    options = parser.parse_args()
    found = list(cells(DESIGNS, options.repetitions, options.replaced))
    text = page(found, options.repetitions, options.replaced)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
