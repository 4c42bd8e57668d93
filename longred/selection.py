"""Which layers are distilled, chosen from their scores.

Scores are of decoder layers 0 to N - 1, the choice is of `hidden_states` indices 1 to N: the score
of decoder layer l selects hidden state l + 1. Hidden state N, after the final norm, is always
chosen and counted.
"""

import math
from collections.abc import Callable, Sequence

from longred.errors import ConfigError


def select_layers(
    layer_scores: Sequence[float],
    *,
    strategy: str,
    num_distill_layers: int,
    layers: Sequence[int] | None = None,
) -> list[int]:
    """Return the hidden states to distil, in ascending order, the last one included.

    Args:
        layer_scores: one per decoder layer; larger means further from the teacher.
        strategy: a key of `STRATEGIES`, or `manual`.
        num_distill_layers: how many are chosen, the last one counted; `manual` does not read it.
        layers: the choice itself, for `manual` only.

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
    if not 1 <= num_distill_layers <= num_layers:
        raise ConfigError(
            f"selection.num_distill_layers: {num_distill_layers} is not in 1 to {num_layers}, the "
            "number of the model's layers"
        )
    return sorted(STRATEGIES[strategy](layer_scores, num_distill_layers))


def explain(layer_scores: Sequence[float], layers: Sequence[int]) -> list[str]:
    """Return one sentence per distilled layer that says why it is there."""
    num_layers = len(layer_scores)
    order = _by_score(layer_scores)
    sentences = []
    for layer in layers:
        score, rank = layer_scores[layer - 1], order.index(layer - 1) + 1
        fact = f"attention KL {score:.4g} nats, rank {rank} of {num_layers}"
        if layer == num_layers:
            fact = f"the last hidden state, after the final norm, is always distilled ({fact})"
        sentences.append(f"hidden state {layer}, output of decoder layer {layer - 1}: {fact}")
    return sentences


def _attention_kl(layer_scores: Sequence[float], count: int) -> list[int]:
    """The highest scores among all layers but the last, and the last (section 4.2)."""
    last = len(layer_scores)
    return [*(layer + 1 for layer in _by_score(layer_scores[:-1])[: count - 1]), last]


def _uniform(layer_scores: Sequence[float], count: int) -> list[int]:
    """Evenly spaced layers that end with the last."""
    return [len(layer_scores) * (number + 1) // count for number in range(count)]


STRATEGIES: dict[str, Callable[[Sequence[float], int], list[int]]] = {
    "attention_kl": _attention_kl,
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
