"""Loss weights that follow the gradients: every term pulls on the student as hard as its text."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from longred.method.methods import Term
from longred.training.sharding import whole

SMOOTHING = 0.5
"""Part of the last logarithm that a new measurement leaves."""
LIMIT = 1e4
"""Largest weight, and one over the smallest: a loss near its floor has almost no gradient."""

Norms = Mapping[Term, float]


class Balance:
    """Weighs each distilled term by the ratio of two gradient norms, the text's over its own.

    With G(t) the L2 norm of term t's gradient over all trained weights in one step, and G(text)
    that of the weighted sum of the cross-entropies, a measurement gives r(t) = G(text) / G(t), the
    weight at which both pull equally. Weights are exponential means of it in the logarithm, where
    a ratio and its inverse count the same: log w := s log w + (1 - s) log r, from log w = log r at
    the first. The idea of equal norms is that of GradNorm (arXiv 1711.02257) without its training
    rates: ours are set in closed form, from the norms alone.

    Args:
        fixed: the weights of the settings. Cross-entropies keep theirs, and so does a term that
            weighs 0: it was switched off.
        every_steps: steps from one measurement to the next; 0 for never.
    """

    def __init__(self, fixed: Mapping[Term, float], *, every_steps: int) -> None:
        self.fixed = dict(fixed)
        self.every_steps = every_steps
        self._logs: dict[str, float] = {}

    @property
    def text(self) -> list[Term]:
        """The terms that the others are measured by."""
        return [term for term in self.fixed if term.objective == "cross_entropy"]

    @property
    def balanced(self) -> list[Term]:
        """The terms whose weights follow: none where there is no text to compare with."""
        if not self.text:
            return []
        return [t for t, weight in self.fixed.items() if t not in self.text and weight > 0]

    def is_due(self, step: int) -> bool:
        """Return whether gradients are measured before a step, counted from 1."""
        return self.every_steps > 0 and bool(self.balanced) and (step - 1) % self.every_steps == 0

    def observe(self, text_norm: float, norms: Norms) -> None:
        """Take the norms of one step; one that is 0 or not finite says nothing of its term."""
        for term, norm in norms.items():
            if not (0 < norm < math.inf and 0 < text_norm < math.inf):
                continue
            ratio = math.log(min(max(text_norm / norm, 1 / LIMIT), LIMIT))
            last = self._logs.get(term.metric, ratio)
            self._logs[term.metric] = SMOOTHING * last + (1 - SMOOTHING) * ratio

    def weights(self) -> dict[Term, float]:
        """Return the weight of every term; before its first measurement the fixed one."""
        followed = {
            t: math.exp(self._logs[t.metric]) for t in self.balanced if t.metric in self._logs
        }
        return {**self.fixed, **followed}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain JSON values."""
        return {"logs": dict(self._logs)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._logs = {str(metric): float(value) for metric, value in state["logs"].items()}


def measure(
    balance: Balance,
    batches: Sequence[Any],
    backward: Callable[[Any, Mapping[Term, float]], object],
    weights: Iterable[nn.Parameter],
) -> None:
    """Let a balance observe the gradients of a step, a backward pass a term; none is left behind.

    It costs as much as one more step, and no memory: the gradients of two terms never exist at
    once. Called by all processes; a norm is that of the whole gradient, however it is divided.

    Args:
        balance: what observes.
        batches: the step's micro-batches, each with its `shares` by term.
        backward: adds a micro-batch's gradient to the weights' under these weights of its terms.
        weights: what is trained.
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
