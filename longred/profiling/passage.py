"""One fixed short passage at rising absolute positions: RoPE is relative, so its loss must stay.

If native scaling is lost or overwritten, the passage is read as well as ever at position 0 and not
at all beyond some position; no test on short rows sees that.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from longred.models.architectures import head_input, logit_softcap
from longred.models.load import hidden_states
from longred.objectives.cross_entropy import long_loss

PASSAGE = (
    "The library opens at nine in the morning and closes at six in the evening. On Sundays it "
    "stays closed. Readers who want to borrow a book need a card, which costs nothing. They may "
    "keep a book for four weeks, and they may keep it for four more weeks if nobody else has asked "
    "for it. A book that comes back late costs ten cents a day."
)
LIMIT = 1.5
"""Largest perplexity at a later position, as a multiple of that at position 0."""


class Placed(NamedTuple):
    """The passage's perplexity where it starts at a position."""

    position: int
    perplexity: float


def passage_positions(window: int, num_tokens: int) -> list[int]:
    """Return the positions at which the passage starts: 0, and up to the end of the window."""
    last = max(0, window - num_tokens)
    return sorted({0, last // 8, last // 4, last // 2, last})


@torch.no_grad()
def passage_perplexities(model: Any, tokens: Sequence[int], window: int) -> list[Placed]:
    """Return the passage's perplexity at rising positions, in one row each.

    Args:
        model: a causal language model with attention `longred`.
        tokens: of the passage, shortened to the window.
        window: tokens that the model is to read.
    """
    tokens = list(tokens)[:window]
    input_ids_BT = torch.tensor([tokens], device=model.device)
    index_BT = torch.arange(len(tokens), device=model.device)[None]
    last, config = int(model.config.num_hidden_layers), model.config
    weight = model.get_output_embeddings().weight
    found = []
    for start in passage_positions(window, len(tokens)):
        states = hidden_states(model, input_ids_BT, layers=[last], position_ids_BT=index_BT + start)
        hidden_BTD = head_input(config, states[last])
        loss = long_loss(hidden_BTD, weight, input_ids_BT, logit_softcap=logit_softcap(config))
        found.append(Placed(start, math.exp(min(float(loss), 700.0))))
    return found


def passage_text(found: Sequence[Placed]) -> str:
    """Return the perplexities in words."""
    first, *others = found
    if not others:
        return f"perplexity {first.perplexity:.4g} at position 0; the window leaves no other"
    worst = max(others, key=lambda each: each.perplexity)
    return (
        f"perplexity {first.perplexity:.4g} at position 0, at most {worst.perplexity:.4g} later "
        f"(position {worst.position:,})"
    )


def keeps_its_perplexity(found: Sequence[Placed]) -> bool:
    """Return whether no later position raises the perplexity beyond `LIMIT` times the first."""
    first = found[0].perplexity
    return math.isfinite(first) and all(each.perplexity <= LIMIT * first for each in found)
