"""How RoPE is rescaled: each method turns a model's RoPE parameters into the student's.

Notation: θ rope_theta, d the rotated dimensions of a head, i = 0…d/2 - 1 its pairs, s the factor by
which the window grows. Unscaled, pair i turns by θ^(-2i/d) a position.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longred.errors import ConfigError

Rope = dict[str, Any]
"""Keys as in transformers' `rope_parameters`."""


@dataclass(frozen=True, slots=True)
class Window:
    """What a method knows about the extension.

    Attributes:
        original: tokens before.
        target: tokens after.
        factor: s: target by original, or by the model's own window where it is rescaled already.
        dim: d.
    """

    original: int
    target: int
    factor: float
    dim: int


Rescale = Callable[[Mapping[str, Any], Window, Mapping[str, Any]], Rope]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to rescale.

    Attributes:
        rescale: makes the student's parameters from the model's, the window and the settings.
        settings: the fields of the recipe's `extension` section that it reads.
        extends: the rope_types that it is defined on.
    """

    rescale: Rescale
    settings: frozenset[str]
    extends: tuple[str, ...]


def _raise_theta(rope: Mapping[str, Any], window: Window, settings: Mapping[str, Any]) -> Rope:
    """Raise θ and leave the rest (ABF, arXiv 2309.16039)."""
    theta, before = settings.get("rope_theta"), rope["rope_theta"]
    if theta is None:
        raise ConfigError("extension.rope_theta: method abf needs the raised theta")
    _check_number("rope_theta", theta)
    if theta <= before:
        raise ConfigError(
            f"extension.rope_theta: {theta:g} does not raise the model's own rope_theta of "
            f"{before:g}; give a larger one"
        )
    return {**rope, "rope_theta": float(theta)}


def _interpolate(rope: Mapping[str, Any], window: Window, settings: Mapping[str, Any]) -> Rope:
    """Divide every frequency by s (arXiv 2306.15595)."""
    factor = float(rope.get("factor", 1.0)) * window.factor
    return {**_theta(rope), "rope_type": "linear", "factor": factor}


def _raise_theta_by_ntk(
    rope: Mapping[str, Any], window: Window, settings: Mapping[str, Any]
) -> Rope:
    """Raise θ to θ s^(d / (d - 2)): the slowest pair is divided by s, the fastest kept.

    The NTK-aware rule in its fixed form; described in arXiv 2309.00071, section 3.1.
    """
    theta = rope["rope_theta"] * window.factor ** (window.dim / (window.dim - 2))
    return {"rope_type": "default", "rope_theta": theta}


def _yarn(rope: Mapping[str, Any], window: Window, settings: Mapping[str, Any]) -> Rope:
    """Divide slow pairs by s, keep fast ones, sharpen attention (YaRN, arXiv 2309.00071)."""
    unknown = rope.keys() - {*_KNOWN, "factor", *_YARN_SETTINGS}
    if unknown:
        raise ConfigError(
            f"extension.method: the model's yarn RoPE sets {', '.join(sorted(unknown))}, and no "
            "rule says how to rescale that; start from the model before its extension"
        )
    original = int(rope.get("original_max_position_embeddings", window.original))
    factor = float(rope.get("factor", 1.0)) * window.factor
    if original * factor != window.target:
        raise ConfigError(
            f"target_window: {window.target} is not exactly {original} x {factor:g}, and servers "
            "read the window of a yarn model from that product; give a multiple of the original"
        )
    given = {name: float(settings.get(name) or rope.get(name) or 0) for name in _YARN_SETTINGS}
    for name, value in given.items():
        _check_number(name, value)
    if (given["beta_fast"] or 32.0) <= (given["beta_slow"] or 1.0):
        raise ConfigError("extension.beta_fast: must be larger than beta_slow (32 and 1 if unset)")
    return {
        **_theta(rope),
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **{name: value for name, value in given.items() if value},
    }


def _llama3(rope: Mapping[str, Any], window: Window, settings: Mapping[str, Any]) -> Rope:
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
        **_theta(rope),
        "rope_type": "llama3",
        "factor": float(rope.get("factor", 1.0)) * window.factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(
            rope.get("original_max_position_embeddings", window.original)
        ),
    }


def _longrope(rope: Mapping[str, Any], window: Window, settings: Mapping[str, Any]) -> Rope:
    """Divide pair i by a factor of its own (LongRoPE, arXiv 2402.13753).

    Without factors from a search, they are those of the NTK-aware rule, s^(2i / (d - 2)), one of
    the points where the paper's search starts. transformers takes the long factors where a text's
    highest position is beyond the original window and the short ones elsewhere, so that skipped
    positions and short texts would see two models. The student has the long factors in both places.
    """
    if rope.get("rope_type") == "longrope" and settings.get("long_factor") is None:
        raise ConfigError(
            "extension.long_factor: the model's RoPE is longrope already; give the factors for the "
            "target window, one for each of "
            f"{window.dim // 2} pairs of dimensions"
        )
    original = int(rope.get("original_max_position_embeddings", window.original))
    given = settings.get("long_factor") or [
        window.factor ** (2 * i / (window.dim - 2)) for i in range(window.dim // 2)
    ]
    if len(given) != window.dim // 2 or not all(_is_positive(x) for x in given):
        raise ConfigError(
            f"extension.long_factor: must hold {window.dim // 2} positive numbers, one for each "
            f"pair of rotated dimensions, got {len(given)}"
        )
    factor = window.target / original
    return {
        **_theta(rope),
        "rope_type": "longrope",
        "factor": factor,
        "short_factor": [float(x) for x in given],
        "long_factor": [float(x) for x in given],
        "original_max_position_embeddings": original,
        "attention_factor": math.sqrt(1 + math.log(factor) / math.log(original)),
    }


_KNOWN = {"rope_type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
_YARN_SETTINGS = ("beta_fast", "beta_slow")

METHODS: dict[str, Method] = {
    "abf": Method(_raise_theta, frozenset({"rope_theta"}), ("default", "linear", "llama3")),
    "pi": Method(_interpolate, frozenset(), ("default", "linear")),
    "ntk": Method(_raise_theta_by_ntk, frozenset(), ("default",)),
    "yarn": Method(_yarn, frozenset(_YARN_SETTINGS), ("default", "yarn")),
    "llama3": Method(
        _llama3, frozenset({"low_freq_factor", "high_freq_factor"}), ("default", "llama3")
    ),
    "longrope": Method(_longrope, frozenset({"long_factor"}), ("default", "longrope")),
}

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
"""What an original model may have; `dynamic` turns by the length of the text it sees."""

DYNAMIC_REFUSED = (
    "dynamic takes its frequencies from the length of the text that it sees, so that short texts "
    "would train another model than long ones; ntk is the same rule with the target's frequencies"
)


def find_method(name: str) -> Method:
    """Return a method.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "dynamic":
        raise ConfigError(f"extension.method: {DYNAMIC_REFUSED}")
    if name not in METHODS:
        raise ConfigError(f"extension.method: {name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]


def _theta(rope: Mapping[str, Any]) -> Rope:
    return {"rope_theta": rope["rope_theta"]}


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"extension.{name}: must be a finite number, got {value!r}")
