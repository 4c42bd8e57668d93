"""The items of the GPU check, most valuable first, and how long each takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item: a module's `measure(check, **options)`, run in its own process.

    Attributes:
        name: item name; its measurements are named `<name>/…`.
        module: module to import.
        seconds: estimated time on one H100 or H200; an item is not started with less time left.
        tiny_seconds: the same with `--tiny` on one CPU core.
        limit: timeout in seconds; 0 means twice the estimate plus one minute.
        options: keyword arguments of `measure`.
    """

    name: str
    module: str
    seconds: float
    tiny_seconds: float
    limit: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


def _variant(name: str, seconds: float, tiny_seconds: float = 2) -> Item:
    options = {"variant": name}
    return Item(
        name=name,
        module="gpu.variants",
        seconds=seconds,
        tiny_seconds=tiny_seconds,
        options=options,
    )


MACHINE = Item(name="machine", module="gpu.machine", seconds=12, tiny_seconds=8)
"""Runs before all others: results are named after the device that it finds."""

ITEMS = (
    Item(name="smoke", module="gpu.smoke", seconds=30, tiny_seconds=4),
    Item(name="products", module="gpu.products", seconds=12, tiny_seconds=6),
    Item(name="attention", module="gpu.attention", seconds=20, tiny_seconds=2),
    Item(name="buckets", module="gpu.buckets", seconds=75, tiny_seconds=3),
    Item(name="shallow", module="gpu.buckets", seconds=22, tiny_seconds=3),
    Item(name="update", module="gpu.update", seconds=22, tiny_seconds=3),
    Item(name="step", module="gpu.step", seconds=2, tiny_seconds=1),
    _variant("unfused", 15),
    _variant("documents", 18),
    _variant("deterministic", 20),
    _variant("recomputed", 12),
    _variant("fp8", 25),
    _variant("compile", 60, 10),
    Item(name="kl", module="gpu.kl", seconds=35, tiny_seconds=1),
    Item(name="tests", module="gpu.suite", seconds=90, tiny_seconds=20),
    Item(name="ours", module="gpu.theirs", seconds=25, tiny_seconds=1, options={"side": "ours"}),
    Item(
        name="theirs", module="gpu.theirs", seconds=40, tiny_seconds=1, options={"side": "theirs"}
    ),
    Item(name="generation", module="gpu.answers", seconds=35, tiny_seconds=4),
    Item(name="long-rows", module="gpu.long_rows", seconds=40, tiny_seconds=1),
)
"""The items up to and including `tests` take 458 s, plus 12 s for `machine`, of 540 s.

At 32 layers a long row takes about 5 s, a short or original micro-batch 1 s. `buckets` runs each
four times and creates 64 GB of weights; the rest is compilation. Variants run at 8 layers.
"""
