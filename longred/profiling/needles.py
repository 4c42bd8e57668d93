"""Needles in long text: facts hidden in a haystack and asked for at its end, as rows of tokens.

A model is scored by the perplexity of the answers alone: that of all tokens hardly depends on what
lies far away (LongRoPE2, arXiv 2502.20082, section 3.2). Shapes: N rows, T tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longred.errors import ConfigError, NonFiniteLossError
from longred.models.architectures import head_input, logit_softcap
from longred.models.load import hidden_states

NUM_NEEDLES = 4
"""Facts in a row, one in each quarter of it."""

NAMES = ("the harbour", "the orchard", "the library", "the station", "the bakery", "the museum")


CODES = range(10_000, 100_000)


class NeedleRows(NamedTuple):
    """Rows with hidden facts.

    Attributes:
        input_ids_NT: the tokens.
        is_answer_NT: true for the tokens of the answers at the end of a row.
    """

    input_ids_NT: Tensor
    is_answer_NT: Tensor


def hide_needles(
    haystack: Sequence[int],
    encode: Callable[[str], list[int]],
    *,
    length: int,
    num_rows: int,
    seed: int,
) -> NeedleRows:
    """Return rows of held-out text with facts, all of which the last sentences repeat.

    Args:
        haystack: tokens of held-out text; a row starts at a random one and goes on from the first
            after the last.
        encode: tokenizes a text, without BOS.
        length: T.
        num_rows: N.
        seed: of facts, places and starts.

    Raises:
        ConfigError: the facts do not fit into half a row.
    """
    rng = np.random.default_rng(seed)
    text = np.asarray(haystack)
    rows, answers = [], []
    for _ in range(num_rows):
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[:NUM_NEEDLES]]
        codes = rng.integers(CODES.start, CODES.stop, NUM_NEEDLES)
        facts = [
            (encode(f"\nThe code of {name} is"), encode(f" {code}."))
            for name, code in zip(names, codes, strict=True)
        ]
        size = sum(len(question) + len(answer) for question, answer in facts)
        if 4 * size > length:
            raise ConfigError(
                f"extension.search: {NUM_NEEDLES} needles and their answers need {2 * size} tokens,"
                f" more than half of target_window ({length}); search at a longer window"
            )
        hay = length - 2 * size
        start = int(rng.integers(len(text)))
        tokens = text[(start + np.arange(hay)) % len(text)].tolist()
        places = (np.arange(NUM_NEEDLES) + rng.random(NUM_NEEDLES)) * (hay / NUM_NEEDLES)
        # From the last one on, so that earlier places stay.
        for (question, answer), place in reversed(list(zip(facts, places, strict=True))):
            tokens[int(place) : int(place)] = [*question, *answer]
        marks = [False] * len(tokens)
        for number in rng.permutation(NUM_NEEDLES):
            question, answer = facts[number]
            tokens += [*question, *answer]
            marks += [False] * len(question) + [True] * len(answer)
        rows.append(tokens)
        answers.append(marks)
    return NeedleRows(torch.tensor(rows), torch.tensor(answers))


def perplexity_by_guessing(rows: NeedleRows) -> float:
    """Return the perplexity of a model that knows the form of an answer and guesses its code."""
    num_answers = NUM_NEEDLES * len(rows.input_ids_NT)
    return math.exp(num_answers * math.log(len(CODES)) / int(rows.is_answer_NT.sum()))


@torch.no_grad()
def needle_perplexity(model: Any, rows: NeedleRows) -> float:
    """Return the perplexity of the answers' tokens, one row at a time.

    Args:
        model: a causal language model with attention `longred`.
        rows: what it reads.

    Raises:
        NonFiniteLossError: it is NaN.
    """
    last, weight = int(model.config.num_hidden_layers), model.get_output_embeddings().weight
    cap = logit_softcap(model.config)
    nats, num_tokens = 0.0, 0
    for ids_T, is_answer_T in zip(*rows, strict=True):
        ids_T, is_answer_T = ids_T.to(model.device), is_answer_T.to(model.device)
        hidden_BTD = hidden_states(model, ids_T[None], layers=[last])[last]
        hidden_TD = head_input(model.config, hidden_BTD)[0, :-1][is_answer_T[1:]]
        logits_TV = F.linear(hidden_TD, weight).float()
        if cap is not None:
            logits_TV = cap * torch.tanh(logits_TV / cap)
        targets_T = ids_T[1:][is_answer_T[1:]]
        nats += float(F.cross_entropy(logits_TV, targets_T, reduction="sum"))
        num_tokens += len(targets_T)
    if math.isnan(nats):
        raise NonFiniteLossError(
            "extension.search: the loss of the needles is not a number; check the model's weights"
        )
    return math.exp(min(nats / num_tokens, 700.0))
