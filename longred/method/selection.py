"""Which layers are distilled, chosen from their scores.

Scores are of decoder layers 0 to N - 1, the choice is of `hidden_states` indices 1 to N: the score
of decoder layer l selects hidden state l + 1. Hidden state N, after the final norm, is always
chosen and counted.

`attention_kl` takes the layers whose attention moved most, and the last (arXiv 2502.07365, section
4.2); `hidden` the same by hidden states; `auto` as many by attention KL as hold a share of all of
it; `uniform` evenly spaced ones; `manual` those it is told.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from longred.errors import ConfigError

AUTO_SHARE = 0.5
"""What the layers of `auto` hold of the total attention KL: on the demo model that is where
similarity to the teacher stops rising much (tests/benchmarks/results/selection-auto.md); a share
changes smoothly with the scores, where the knee of a nearly straight curve is chance."""


class Measure(NamedTuple):
    """What the layers are scored by.

    Attributes:
        name: `attention_kl` or `hidden_distance`.
        words: how a sentence calls it.
        unit: as it follows a number.
    """

    name: str
    words: str
    unit: str


_ATTENTION = Measure("attention_kl", "attention KL", " nats")
_HIDDEN = Measure("hidden_distance", "hidden-state distance (1 - cosine)", "")
MEASURES = {
    "attention_kl": _ATTENTION,
    "hidden": _HIDDEN,
    "auto": _ATTENTION,
    "uniform": _ATTENTION,
    "manual": _ATTENTION,
}
"""By which measure a strategy scores, or speaks of, the layers."""


def select_layers(
    layer_scores: Sequence[float],
    *,
    strategy: str,
    num_distill_layers: int,
    layers: Sequence[int] | None = None,
    share: float = AUTO_SHARE,
) -> list[int]:
    """Return the hidden states to distil, in ascending order, the last one included.

    Args:
        layer_scores: one per decoder layer, by what `MEASURES` names for the strategy; larger means
            further from the teacher.
        strategy: a key of `STRATEGIES`, or `manual`.
        num_distill_layers: how many are chosen, the last one counted; `manual` and `auto` do not
            read it.
        layers: the choice itself, for `manual` only.
        share: of the sum of all scores, that the layers chosen by `auto` hold together.

    Raises:
        ConfigError: the strategy is unknown, or the layers do not exist or are not that many.
    """
    num_layers = len(layer_scores)
    if not all(math.isfinite(score) for score in layer_scores) or not num_layers:
        raise ConfigError("selection: layer scores must be finite, one per decoder layer")
    if (strategy == "manual") != (layers is not None):
        raise ConfigError(
            "selection.layers: give the layers with strategy manual, and only with it"
        )
    if layers is not None:
        return _manual(layers, num_layers)
    if strategy not in STRATEGIES:
        known = ", ".join([*STRATEGIES, "manual"])
        raise ConfigError(f"selection.strategy: {strategy!r} is not one of {known}")
    if strategy == "auto":
        num_distill_layers = layers_for_share(layer_scores, share)
    if not 1 <= num_distill_layers <= num_layers:
        raise ConfigError(
            f"selection.num_distill_layers: {num_distill_layers} is not in 1 to {num_layers}, the "
            "number of the model's layers"
        )
    return sorted(STRATEGIES[strategy](layer_scores, num_distill_layers))


def layers_for_share(layer_scores: Sequence[float], share: float) -> int:
    """Return the fewest layers, the last one counted, that hold a share of the sum of all scores.

    Args:
        layer_scores: one per decoder layer.
        share: above 0, at most 1.

    Raises:
        ConfigError: the share is not in that range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"selection.share: must be above 0 and at most 1, got {share}")
    wanted, held = share * sum(layer_scores), layer_scores[-1]
    others = sorted(layer_scores[:-1], reverse=True)
    for count, score in enumerate(others, start=1):
        if held >= wanted:
            return count
        held += score
    return len(layer_scores)


def explain(layer_scores: Sequence[float], layers: Sequence[int], *, strategy: str) -> list[str]:
    """Return one sentence per distilled layer that says why it is there."""
    num_layers, order = len(layer_scores), _by_score(layer_scores)
    measure = MEASURES[strategy]
    sentences = []
    for layer in layers:
        score, rank = layer_scores[layer - 1], order.index(layer - 1) + 1
        fact = (
            f"{_percent(score, layer_scores)} of the total {measure.words} "
            f"({score:.4g}{measure.unit}, rank {rank} of {num_layers})"
        )
        if layer == num_layers:
            fact = f"the last hidden state, after the final norm, is always distilled; {fact}"
        sentences.append(f"hidden state {layer}, output of decoder layer {layer - 1}: {fact}")
    return sentences


def explain_number(
    layer_scores: Sequence[float],
    layers: Sequence[int],
    *,
    strategy: str,
    share: float = AUTO_SHARE,
) -> str:
    """Return one sentence that says how the number of layers came about, and what they hold."""
    held = _percent(sum(layer_scores[layer - 1] for layer in layers), layer_scores)
    words = MEASURES[strategy].words
    reason = {
        "auto": f"the fewest layers, the last one counted, that hold {100 * share:.0f} % of the "
        f"total {words} are distilled",
        "manual": "the layers that the recipe names are distilled",
        "uniform": "evenly spaced layers up to the last are distilled, as many as the recipe says",
    }.get(
        strategy,
        f"the layers with the highest {words} and the last are distilled, as many as the recipe "
        "says",
    )
    return f"{reason}: {len(layers)} of {len(layer_scores)} layers hold {held} of the total {words}"


def _percent(score: float, layer_scores: Sequence[float]) -> str:
    total = sum(layer_scores)
    return f"{100 * score / total:.0f} %" if total > 0 else "nothing"


def _highest(layer_scores: Sequence[float], count: int) -> list[int]:
    """The highest scores among all layers but the last, and the last; equal scores in order."""
    last = len(layer_scores)
    return [*(layer + 1 for layer in _by_score(layer_scores[:-1])[: count - 1]), last]


def _uniform(layer_scores: Sequence[float], count: int) -> list[int]:
    """Evenly spaced layers that end with the last."""
    return [len(layer_scores) * (number + 1) // count for number in range(count)]


STRATEGIES: dict[str, Callable[[Sequence[float], int], list[int]]] = {
    "attention_kl": _highest,
    "hidden": _highest,
    "auto": _highest,
    "uniform": _uniform,
}


def _manual(layers: Sequence[int], num_layers: int) -> list[int]:
    if len(set(layers)) != len(layers) or not all(1 <= layer <= num_layers for layer in layers):
        raise ConfigError(
            f"selection.layers: must be different numbers from 1 to {num_layers} (hidden_states "
            f"indices), got {list(layers)}"
        )
    if num_layers not in layers:
        raise ConfigError(f"selection.layers: must contain the last hidden state, {num_layers}")
    return sorted(layers)


def _by_score(scores: Sequence[float]) -> list[int]:
    """Return the decoder layers from the highest score down; equal scores in order."""
    return sorted(range(len(scores)), key=lambda layer: -scores[layer])
