"""Defaults that follow from other settings, so that a recipe works on any window.

They are filled in before a recipe is checked: records, digests and plans hold the numbers, as if
the recipe had named them.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter, ValidationError

from longred.config.data import DataConfig
from longred.config.section import Bucket
from longred.config.training import ParallelConfig, TrainingConfig
from longred.method.layout import Layout
from longred.method.methods import METHODS, method_terms
from longred.method.values import Count, CountOrZero

SHORT_LENGTH = 1024
"""Length of short blocks in the paper."""

STEP_TOKENS = 2**21
"""Tokens of a step in the paper."""

MIN_STEPS = 64
"""Fewer optimizer steps than this hardly train; the size of a step gives way first."""


DERIVED = {
    "data.short_length": f"half of original_window, at most {SHORT_LENGTH:,}",
    "training.step_tokens": f"the largest whole step of at most {STEP_TOKENS:,} tokens that leaves "
    f"{MIN_STEPS} steps for data.num_tokens, at least the smallest whole step",
    "training.num_steps": "as many as read data.num_tokens once",
    "evaluation.ruler.lengths": "original_window, doubled up to target_window",
    "evaluation.add_bos_token": "data.add_bos",
}
"""Key → its default in words."""

_COUNT = TypeAdapter(Count)
_RATIO = TypeAdapter(dict[Bucket, CountOrZero])


def with_derived(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe with the derived defaults that it does not set.

    Numbers may be text, as recipes give them. Values of the wrong type are left alone, and so is
    what would follow from them: validation names them.

    Args:
        values: sections before validation.
    """
    result = dict(values)
    original, target = (_count(result.get(f"{name}_window")) for name in ("original", "target"))
    if original is None or target is None:
        return result
    data = _section(result, "data")
    if data is not None:
        data.setdefault("short_length", max(1, min(SHORT_LENGTH, original // 2)))
        training = _section(result, "training")
        if training is not None:
            _derive_steps(training, data, original, _windows(result, target))
    evaluation = _section(result, "evaluation")
    ruler = None if evaluation is None else _section(evaluation, "ruler")
    if ruler is not None and not ruler.get("lengths"):
        ruler["lengths"] = doubled(original, target)
    add_bos = None if data is None else data.get("add_bos")
    if evaluation is not None and evaluation.get("add_bos_token") is None and add_bos is not None:
        evaluation["add_bos_token"] = add_bos
    return result


def doubled(original: int, target: int) -> list[int]:
    """Return the original window, its doublings below the target window, and the target window."""
    lengths = []
    while original < target:
        lengths.append(original)
        original *= 2
    return [*lengths, target]


def step_unit(
    lengths: Mapping[str, int],
    ratio: Mapping[str, int],
    methods: Mapping[str, str],
    layout: Layout,
) -> int:
    """Return the smallest step that every method can divide into whole blocks; multiples work too.

    Args:
        lengths: tokens of a block of each bucket.
        ratio: parts of each bucket in a step; a method does without a bucket of 0.
        methods: method → the method that carries its terms, for those that train adapters.
        layout: how processes divide the blocks of a step.
    """
    units = [1]
    for method, carried in methods.items():
        terms = method_terms(METHODS[method].merges or method, carried)
        buckets = terms.reading(ratio).buckets()
        whole = sum(ratio[bucket] for bucket in buckets)
        for bucket in buckets:
            # The bucket's share of the step must be a multiple of this.
            rows = lengths[bucket] * max(1, layout.readers(bucket))
            units.append(Fraction(rows * whole, ratio[bucket]).numerator)
    return math.lcm(*units)


def _derive_steps(
    training: dict[str, Any], data: Mapping[str, Any], original: int, windows: list[int]
) -> None:
    """Fill in the tokens of a step and the number of steps, if the settings they need are right."""
    num_tokens = _count(data.get("num_tokens"))
    if num_tokens is None:
        return
    if "step_tokens" not in training:
        unit = _unit(training, data, original, windows)
        if unit is None:
            return
        most = min(STEP_TOKENS, num_tokens // MIN_STEPS)
        training["step_tokens"] = max(1, most // unit) * unit
    step_tokens = _count(training["step_tokens"])
    if "num_steps" not in training and step_tokens is not None:
        training["num_steps"] = max(1, num_tokens // step_tokens)


def _unit(
    training: Mapping[str, Any], data: Mapping[str, Any], original: int, windows: list[int]
) -> int | None:
    """Return the smallest step that works at every window; None if a setting is wrong."""
    defaults = TrainingConfig()
    method, baselines = training.get("method", defaults.method), training.get("baselines", [])
    carried = _section(dict(training), "lora") or {}
    try:
        ratio = _RATIO.validate_python(data.get("ratio", DataConfig.model_fields["ratio"].default))
        layout = ParallelConfig.model_validate(training.get("parallel", {}))
        objectives = carried.get("objectives", defaults.lora.objectives)
        methods = {name: objectives for name in (method, *baselines)}
        short = _COUNT.validate_python(data["short_length"])
        lengths = {"short": short, "original": original}
        parts = {str(bucket): part for bucket, part in ratio.items()}
        units = (step_unit({**lengths, "long": w}, parts, methods, layout) for w in windows)
        return math.lcm(*units)
    except (KeyError, TypeError, AttributeError, ValueError):
        # A value of the wrong type, which validation names.
        return None


def _windows(values: Mapping[str, Any], target: int) -> list[int]:
    """Return all target windows of a progressive extension."""
    extension = values.get("extension")
    steps = extension.get("windows") if isinstance(extension, Mapping) else None
    if not isinstance(steps, list | tuple):
        return [target]
    found = [_count(step.get("target_window")) for step in steps if isinstance(step, Mapping)]
    return [*filter(None, found), target]


def _section(values: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Replace a section by a copy and return it; None if it is not a mapping."""
    section = values.get(name, {})
    if not isinstance(section, Mapping):
        return None
    values[name] = copy = dict(section)
    return copy


def _count(value: Any) -> int | None:
    """Return a positive whole number as validation will read it; None if it is none."""
    try:
        return _COUNT.validate_python(value)
    except ValidationError:
        return None
