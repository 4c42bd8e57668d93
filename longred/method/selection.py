"""Which layers are distilled, chosen by their scores.

Scores belong to decoder layers 0 to N - 1, the choice to `hidden_states` indices 1 to N: the score
of decoder layer l selects hidden state l + 1. Hidden state N, after the final norm, is always
chosen and counted.

`attention_kl` chooses the layers with the largest attention KL and the last one (arXiv 2502.07365,
section 4.2); `hidden` does the same by hidden-state distance; `auto` chooses by attention KL the
fewest layers that hold a given share of its sum; `uniform` spaces them evenly; `manual` names them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from longred.errors import ConfigError

AUTO_SHARE = 0.5
"""Share of the total attention KL that the layers of `auto` hold: three of the demo model's six,
which no other number beats by short-text skill or RULER over five seeds; similarity to the teacher
rises little beyond it (tests/benchmarks/results/study-demo-ablations.md). A share changes smoothly
with the scores; the knee of a nearly straight curve is arbitrary."""


class Measure(NamedTuple):
    """The score of a layer.

    Attributes:
        name: `attention_kl` or `hidden_distance`.
        words: its name in a sentence.
        unit: suffix of a number.
    """

    name: str
    words: str
    unit: str


STRATEGIES = ("attention_kl", "hidden", "auto", "uniform", "manual")
MEASURES = {
    **dict.fromkeys(STRATEGIES, Measure("attention_kl", "attention KL", " nats")),
    "hidden": Measure("hidden_distance", "hidden-state distance (1 - cosine)", ""),
}
"""Strategy → the score that it chooses or explains layers by."""


def select_layers(
    layer_scores: Sequence[float],
    *,
    strategy: str,
    num_distill_layers: int,
    layers: Sequence[int] | None = None,
    share: float = AUTO_SHARE,
) -> list[int]:
    """Return the hidden states to distil, in ascending order, including the last one.

    Args:
        layer_scores: one per decoder layer, by the strategy's measure in `MEASURES`; larger means
            further from the teacher. Equal scores keep their order.
        strategy: one of `STRATEGIES`.
        num_distill_layers: number of layers including the last; `manual` and `auto` ignore it.
        layers: the choice itself, for `manual` only.
        share: of the sum of all scores, for `auto` only.

    Raises:
        ConfigError: the strategy is unknown, or the layers or their number are impossible.
    """
    num_layers = len(layer_scores)
    if not all(math.isfinite(score) for score in layer_scores) or not num_layers:
        raise ConfigError("selection: layer scores must be finite, one per decoder layer")
    if strategy not in STRATEGIES:
        raise ConfigError(f"selection.strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if (strategy == "manual") != (layers is not None):
        raise ConfigError(
            "selection.layers: give the layers with strategy manual, and only with it"
        )
    if layers is not None:
        if len(set(layers)) != len(layers) or not all(1 <= i <= num_layers for i in layers):
            raise ConfigError(
                f"selection.layers: must be different numbers from 1 to {num_layers} "
                f"(hidden_states indices), got {list(layers)}"
            )
        if num_layers not in layers:
            raise ConfigError(f"selection.layers: must contain the last hidden state, {num_layers}")
        return sorted(layers)
    count = layers_for_share(layer_scores, share) if strategy == "auto" else num_distill_layers
    if not 1 <= count <= num_layers:
        raise ConfigError(
            f"selection.num_distill_layers: {count} is not in 1 to {num_layers}, the number of the "
            "model's layers"
        )
    if strategy == "uniform":
        return [num_layers * (number + 1) // count for number in range(count)]
    highest = _by_score(layer_scores[:-1])[: count - 1]
    return [*sorted(layer + 1 for layer in highest), num_layers]


def layers_for_share(layer_scores: Sequence[float], share: float) -> int:
    """Return the smallest number of layers, including the last, that hold a share of all scores.

    Args:
        layer_scores: one per decoder layer.
        share: above 0, at most 1.

    Raises:
        ConfigError: the share is outside this range.
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
    """Return one sentence per distilled layer: why it was chosen."""
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
    """Return one sentence: why this number of layers, and which share of the scores they hold."""
    held = _percent(sum(layer_scores[layer - 1] for layer in layers), layer_scores)
    words = MEASURES[strategy].words
    if strategy == "auto":
        reason = (
            f"the fewest layers, the last one counted, that hold {100 * share:.0f} % of the total "
            f"{words} are distilled"
        )
    elif strategy == "manual":
        reason = "the layers that the recipe names are distilled"
    else:
        which = "evenly spaced layers up to the last"
        if strategy != "uniform":
            which = f"the layers with the highest {words} and the last"
        reason = f"{which} are distilled, as many as the recipe says"
    return f"{reason}: {len(layers)} of {len(layer_scores)} layers hold {held} of the total {words}"


def _percent(score: float, layer_scores: Sequence[float]) -> str:
    total = sum(layer_scores)
    return f"{100 * score / total:.0f} %" if total > 0 else "nothing"


def _by_score(scores: Sequence[float]) -> list[int]:
    """Return the decoder layers from the highest score down; equal scores in order."""
    return sorted(range(len(scores)), key=lambda layer: -scores[layer])
