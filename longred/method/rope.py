"""RoPE rescaling: each method turns a model's RoPE parameters into the student's.

Notation: θ rope_theta, d the rotated dimensions of a head, i = 0…d/2 - 1 its pairs, s the factor by
which the window grows. Without rescaling, pair i turns by θ^(-2i/d) per position.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longred.errors import ConfigError

Values = Mapping[str, Any]
Rope = dict[str, Any]
"""Keys as in transformers' `rope_parameters`."""


@dataclass(frozen=True, slots=True)
class Window:
    """The extension, as far as methods read it.

    Attributes:
        original: tokens before the first rescaling.
        target: tokens after this one.
        factor: s, including the factor by which the model is rescaled already.
        dim: d.
    """

    original: int
    target: int
    factor: float
    dim: int


@dataclass(frozen=True, slots=True)
class RopeMethod:
    """One rescaling method.

    Attributes:
        title: its name as it is usually written.
        rescale: computes the student's parameters from the model's, the window and the settings.
        settings: the fields of the recipe's `extension` section that it reads.
        extends: the rope_types that it is defined on.
    """

    title: str
    rescale: Callable[[Values, Window, Values], Rope]
    settings: frozenset[str]
    extends: tuple[str, ...]


def proposed_theta(theta: float, factor: float) -> float:
    """Return the θ that `abf` raises a model's to if none is given: θ s².

    Published choices lie on both sides of it. As powers of s: 1.33 in ProLong (arXiv 2410.02660, 8K
    to 64K), 1.88 in ABF's paper (4K to 32K), 2.66 in LongReD's script (8K to 32K). A smaller θ
    leaves slow pairs beyond the angles seen in pre-training, a larger one moves the model farther
    from the original.

    Args:
        theta: rope_theta of the original model.
        factor: s.
    """
    return theta * factor**2


def _raise_theta(rope: Values, window: Window, settings: Values) -> Rope:
    """Raise θ and leave the rest (ABF, arXiv 2309.16039)."""
    before = rope["rope_theta"]
    # A rescaling that the model has already stays; theta answers only for what is added to it.
    added = window.factor / float(rope.get("factor", 1.0))
    theta = settings.get("rope_theta") or proposed_theta(before, added)
    if theta <= before:
        raise ConfigError(
            f"extension.rope_theta: {theta:g} does not raise the model's own rope_theta of "
            f"{before:g}; give a larger one"
        )
    return {**rope, "rope_theta": float(theta)}


def _interpolate(rope: Values, window: Window, settings: Values) -> Rope:
    """Divide every frequency by s (arXiv 2306.15595)."""
    return {"rope_theta": rope["rope_theta"], "rope_type": "linear", "factor": window.factor}


def _raise_theta_by_ntk(rope: Values, window: Window, settings: Values) -> Rope:
    """Raise θ to θ s^(d / (d - 2)): divides the slowest pair by s and leaves the fastest.

    The NTK-aware rule in its fixed form, arXiv 2309.00071, section 3.1.
    """
    theta = rope["rope_theta"] * window.factor ** (window.dim / (window.dim - 2))
    return {"rope_type": "default", "rope_theta": theta}


def _yarn(rope: Values, window: Window, settings: Values) -> Rope:
    """Divide slow pairs by s, keep fast ones, sharpen attention (YaRN, arXiv 2309.00071)."""
    unknown = rope.keys() - {*_KNOWN, "factor", *_YARN_SETTINGS}
    if unknown:
        raise ConfigError(
            f"extension.method: the model's yarn RoPE sets {', '.join(sorted(unknown))}, and no "
            "rule says how to rescale that; start from the model before its extension"
        )
    if window.original * window.factor != window.target:
        raise ConfigError(
            f"target_window: {window.target} is not exactly {window.original} x {window.factor:g}, "
            "and servers read the window of a yarn model from that product; give a multiple of the "
            "original"
        )
    given = {name: float(settings.get(name) or rope.get(name) or 0) for name in _YARN_SETTINGS}
    if (given["beta_fast"] or 32.0) <= (given["beta_slow"] or 1.0):
        raise ConfigError("extension.beta_fast: must be larger than beta_slow (32 and 1 if unset)")
    return {
        "rope_theta": rope["rope_theta"],
        "rope_type": "yarn",
        "factor": window.factor,
        "original_max_position_embeddings": window.original,
        **{name: value for name, value in given.items() if value},
    }


def _llama3(rope: Values, window: Window, settings: Values) -> Rope:
    """Divide pairs with wavelengths beyond the original window by s, blend below (Llama 3.1)."""
    low, high = (
        float(settings.get(name) or rope.get(name) or default)
        for name, default in (("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    if not 0 < low < high:
        raise ConfigError(
            f"extension.high_freq_factor: must be larger than low_freq_factor, got {high:g} and "
            f"{low:g}"
        )
    return {
        "rope_theta": rope["rope_theta"],
        "rope_type": "llama3",
        "factor": window.factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": window.original,
    }


def _longrope(rope: Values, window: Window, settings: Values) -> Rope:
    """Divide each pair by its own factor (LongRoPE, arXiv 2402.13753).

    The default factors are those of the NTK-aware rule, s^(2i / (d - 2)), one of the starting
    points of the paper's search. transformers uses the long factors for texts beyond the original
    window and the short ones for others, so skipped positions and short texts would train two
    different models. The student therefore has the long factors in both fields, unless mixed
    windows are asked for.
    """
    mixed = settings.get("short_factor") is not None
    if mixed and rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"extension.short_factor: the model's RoPE is already rescaled "
            f"({rope['rope_type']}), so that its original window has no plain RoPE to keep; remove "
            "the key, or start from the model before its extension"
        )
    num_pairs = window.dim // 2
    if rope.get("rope_type") == "longrope" and settings.get("long_factor") is None:
        raise ConfigError(
            "extension.long_factor: the model's RoPE is longrope already; give the factors for the "
            f"target window, one for each of {num_pairs} pairs of dimensions"
        )
    given = settings.get("long_factor") or [
        window.factor ** (2 * i / (window.dim - 2)) for i in range(num_pairs)
    ]
    if len(given) != num_pairs or not all(_is_finite(x) and x > 0 for x in given):
        raise ConfigError(
            f"extension.long_factor: must hold {num_pairs} positive numbers, one for each pair of "
            f"rotated dimensions, got {len(given)}"
        )
    factors = [float(x) for x in given]
    factor = window.target / window.original
    if mixed:
        return _mixed_windows(rope, window, factors)
    return {
        "rope_theta": rope["rope_theta"],
        "rope_type": "longrope",
        "factor": factor,
        "short_factor": factors,
        "long_factor": list(factors),
        "original_max_position_embeddings": window.original,
        "attention_factor": math.sqrt(1 + math.log(factor) / math.log(window.original)),
    }


def _mixed_windows(rope: Values, window: Window, factors: list[float]) -> Rope:
    """Keep RoPE up to the original window, divide it beyond (LongRoPE2, arXiv 2502.20082).

    transformers chooses by the highest position of a pass. Attention is not sharpened, since one
    factor serves both ranges and RoPE inside the window must stay exact; servers that derive it
    from the windows read `short_mscale` and `long_mscale`.
    """
    return {
        "rope_theta": rope["rope_theta"],
        "rope_type": "longrope",
        "factor": window.target / window.original,
        "short_factor": [1.0] * len(factors),
        "long_factor": factors,
        "original_max_position_embeddings": window.original,
        "attention_factor": 1.0,
        "short_mscale": 1.0,
        "long_mscale": 1.0,
    }


def switches(rope: Values) -> bool:
    """Return whether RoPE has other frequencies inside the original window than beyond it."""
    return rope.get("rope_type") == "longrope" and rope["short_factor"] != rope["long_factor"]


def _clip(rope: Values, window: Window, settings: Values) -> Rope:
    """Damp the n slowest pairs by a cosine that falls from 1 to 0 (CoPE, arXiv 2602.05258).

    The k-th of them (k = 0…n - 1, fastest first) is multiplied by (1 + cos(π k / (n - 1))) / 2. The
    default n counts the pairs that do not turn once within the original window, so that a longer
    text shows them angles not seen in pre-training.

    The factors are equal in both fields and the window of the switch is the target, from which
    every reader derives an attention factor of 1.
    """
    own, num_pairs = float(rope["rope_theta"]), window.dim // 2
    theta = float(settings.get("rope_theta") or own)
    if theta < own:
        raise ConfigError(
            f"extension.rope_theta: {theta:g} is below the model's own rope_theta of {own:g}; give "
            "a larger one, or null to keep it"
        )
    periods = [2 * math.pi * own ** (2 * i / window.dim) for i in range(num_pairs)]
    num_slow = sum(period > window.original for period in periods)
    num_clipped = settings.get("num_clipped") or num_slow
    if not 2 <= num_clipped <= num_pairs:
        raise ConfigError(
            f"extension.num_clipped: must be from 2, since the first of them is kept whole, to the "
            f"model's {num_pairs} pairs of rotated dimensions, got {num_clipped}; {num_slow} of "
            f"them do not turn once within {window.original} tokens"
        )
    masks = [0.5 * (1 + math.cos(math.pi * k / (num_clipped - 1))) for k in range(num_clipped)]
    slow = [1 / mask if mask else STANDSTILL for mask in masks]
    factors = [1.0] * (num_pairs - num_clipped) + slow
    return {
        "rope_theta": theta,
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": factors,
        "long_factor": list(factors),
        "original_max_position_embeddings": window.target,
        "attention_factor": 1.0,
    }


def _drop(rope: Values, window: Window, settings: Values) -> Rope:
    """Stop every pair, so that the model has no positions (DroPE, arXiv 2512.12167).

    Written as llama3, whose factor divides the pairs with wavelengths beyond original / low: with
    these bounds all, since none is below 2π. As linear, vLLM would multiply the window by the
    factor and lay out a table of so many positions.
    """
    return {
        "rope_theta": rope["rope_theta"],
        "rope_type": "llama3",
        "factor": STANDSTILL,
        "low_freq_factor": float(window.original),
        "high_freq_factor": 2.0 * window.original,
        "original_max_position_embeddings": window.original,
    }


def is_dropped(rope: Values) -> bool:
    """Return whether RoPE is switched off."""
    return rope.get("rope_type") == "llama3" and float(rope["factor"]) >= STANDSTILL


STANDSTILL = 1e28
"""Factor that stops a pair: up to position 10^7 its cosine is 1 and its sine at most 10^-21.

Times any usual theta it is still a finite number in fp32.
"""

_KNOWN = {"rope_type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
_YARN_SETTINGS = ("beta_fast", "beta_slow")

ROPE_METHODS: dict[str, RopeMethod] = {
    "abf": RopeMethod(
        "ABF", _raise_theta, frozenset({"rope_theta"}), ("default", "linear", "llama3")
    ),
    "pi": RopeMethod("PI", _interpolate, frozenset(), ("default", "linear")),
    "ntk": RopeMethod("NTK", _raise_theta_by_ntk, frozenset(), ("default",)),
    "yarn": RopeMethod("YaRN", _yarn, frozenset(_YARN_SETTINGS), ("default", "yarn")),
    "llama3": RopeMethod(
        "Llama 3",
        _llama3,
        frozenset({"low_freq_factor", "high_freq_factor"}),
        ("default", "llama3"),
    ),
    "longrope": RopeMethod(
        "LongRoPE", _longrope, frozenset({"long_factor", "short_factor"}), ("default", "longrope")
    ),
    "cope": RopeMethod("CoPE", _clip, frozenset({"rope_theta", "num_clipped"}), ("default",)),
    "drope": RopeMethod("DroPE", _drop, frozenset(), ("default",)),
}

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
"""RoPE types that an original model may have; not `dynamic`, see `DYNAMIC_REFUSED`."""

DYNAMIC_REFUSED = (
    "dynamic takes its frequencies from the length of the text that it sees, so that short texts "
    "would train another model than long ones; ntk is the same rule with the target's frequencies"
)


def settings_problem(method: str, settings: Values) -> str | None:
    """Return what is wrong with a method's name or settings, by dotted key, or None."""
    if method == "dynamic":
        return f"extension.method: {DYNAMIC_REFUSED}"
    if method not in ROPE_METHODS:
        return f"extension.method: {method!r} is not one of {', '.join(ROPE_METHODS)}"
    for name in sorted(settings.keys() - ROPE_METHODS[method].settings):
        return f"extension.{name}: method {method} does not use it; remove it or set it to null"
    for name, value in settings.items():
        if name == "short_factor":
            if value != "original":
                return f"extension.short_factor: must be original or null, got {value!r}"
        elif name != "long_factor" and not _is_finite(value):
            return f"extension.{name}: must be a finite number, got {value!r}"
    return None


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
