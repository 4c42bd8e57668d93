"""Loss weights from gradient norms: each distilled term pulls as hard as the cross-entropies."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from longred.method.methods import Term
from longred.training.sharding import whole

SMOOTHING = 0.5
"""Share of the previous logarithm in a new average."""
LIMIT = 1e4
"""Largest weight, and inverse of the smallest: a loss near its minimum has almost no gradient."""


class Balance:
    """Weighs each distilled term by a ratio of gradient norms: the cross-entropies' over its own.

    With G(t) the L2 norm of term t's gradient over all trained weights in one step, and G(text)
    that of the weighted sum of the cross-entropies, a measurement gives r(t) = G(text) / G(t), the
    weight at which both pull equally. Weights are exponential averages in the logarithm, where a
    ratio and its inverse count alike: log w := s log w + (1 - s) log r, starting at log w = log r.
    Equal norms are the idea of GradNorm (arXiv 1711.02257), here in closed form and without its
    training rates.

    Args:
        fixed: weights from the settings. Cross-entropies keep theirs, and so do terms of weight 0.
        every_steps: steps between measurements; 0 for never.
    """

    def __init__(self, fixed: Mapping[Term, float], *, every_steps: int) -> None:
        self.fixed = dict(fixed)
        self.every_steps = every_steps
        self.text = [term for term in fixed if term.objective == "cross_entropy"]
        self.balanced: list[Term] = []
        if self.text:
            self.balanced = [t for t, weight in fixed.items() if t not in self.text and weight > 0]
        self._logs: dict[str, float] = {}

    def is_due(self, step: int) -> bool:
        """Return whether gradients are measured before a step, counted from 1."""
        return self.every_steps > 0 and bool(self.balanced) and (step - 1) % self.every_steps == 0

    def observe(self, text_norm: float, norms: Mapping[Term, float]) -> None:
        """Record the norms of one step; ignore those that are 0 or not finite."""
        for term, norm in norms.items():
            if not (0 < norm < math.inf and 0 < text_norm < math.inf):
                continue
            ratio = math.log(min(max(text_norm / norm, 1 / LIMIT), LIMIT))
            last = self._logs.get(term.metric, ratio)
            self._logs[term.metric] = SMOOTHING * last + (1 - SMOOTHING) * ratio

    def weights(self) -> dict[Term, float]:
        """Return the weight of every term; before its first measurement the fixed one."""
        measured = [term for term in self.balanced if term.metric in self._logs]
        return {**self.fixed, **{term: math.exp(self._logs[term.metric]) for term in measured}}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {"logs": dict(self._logs)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._logs = {str(metric): float(value) for metric, value in state["logs"].items()}


def measure(
    balance: Balance,
    batches: Sequence[Any],
    backward: Callable[[Any, Mapping[Term, float]], object],
    weights: Iterable[nn.Parameter],
) -> None:
    """Measure the gradient norm of each term in one step; leave no gradients behind.

    Costs about one more step and no memory, because one gradient exists at a time. Called by all
    processes; the norms are those of the whole, unsharded gradients.

    Args:
        balance: records the norms.
        batches: micro-batches of the step, each with its `shares` by term.
        backward: adds a micro-batch's gradient under the given weights of its terms.
        weights: the trained weights.
    """
    trained = list(weights)

    def norm(wanted: Mapping[Term, float]) -> float:
        for batch in batches:
            if wanted.keys() & batch.shares.keys():
                backward(batch, {term: wanted.get(term, 0.0) for term in batch.shares})
        total = torch.nn.utils.get_total_norm([w.grad for w in trained if w.grad is not None])
        for weight in trained:
            weight.grad = None
        return float(whole(total))

    text_norm = norm({term: balance.fixed[term] for term in balance.text})
    balance.observe(text_norm, {term: norm({term: 1.0}) for term in balance.balanced})
