"""How well a model predicts long held-out text: by position, and on the tokens that need it.

Plain perplexity averages over tokens that a short context predicts as well; LongPPL counts only
those that a judge predicts much better with all of the text before them (Fang et al., arXiv
2410.23771, equations 2 to 4, with its thresholds).

Shapes: N rows, T tokens of a row, D hidden size, C tokens at a time, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longred.errors import ConfigError, NonFiniteLossError
from longred.evaluation.perplexity import rows_of
from longred.models.architectures import logit_softcap
from longred.models.load import hidden_states

CHUNK_TOKENS = 1024
MIN_GAIN_NATS = 2.0
"""A key token gains more than this from the text beyond the short context (alpha)."""
MIN_LOG_PROBABILITY = -2.0
"""A key token is predicted better than this with all of the text (beta)."""
STRIDE_SHARE = 4
"""A short context is between one window and this share of it more, so that one run serves many."""


def choose_rows(
    documents: Sequence[str], tokenizer: Any, *, length: int, num_tokens: int
) -> list[list[int]]:
    """Return rows of exactly `length` tokens, spread evenly over the documents that are so long.

    Raises:
        ConfigError: no document is.
    """
    rows = [ids for text in documents for ids, _ in rows_of(text, tokenizer, length)]
    if not rows:
        raise ConfigError(
            f"evaluation.perplexity.lengths: no held-out document has {length} tokens; hold out "
            "more text (data.validation_fraction), or ask for shorter lengths"
        )
    count = min(len(rows), max(1, num_tokens // length))
    return [rows[i * len(rows) // count] for i in range(count)]


def token_losses(model: Any, rows_NT: Tensor) -> Tensor:
    """Return the cross-entropy of every token but the first of each row, in nats [N, T-1].

    Rows are run one by one, and logits of no more than CHUNK_TOKENS tokens are held.

    Raises:
        NonFiniteLossError: one of them is not finite.
    """
    head, cap = model.get_output_embeddings(), logit_softcap(model.config)
    last = model.config.num_hidden_layers
    losses = []
    with torch.no_grad():
        for row_T in rows_NT:
            tokens_T = row_T.to(model.device)
            hidden_TD = hidden_states(model, tokens_T[None], layers=[last])[last][0]
            for start in range(0, len(tokens_T) - 1, CHUNK_TOKENS):
                target_C = tokens_T[start + 1 : start + 1 + CHUNK_TOKENS]
                logits_CV = head(hidden_TD[start : start + len(target_C)]).float()
                if cap is not None:
                    logits_CV = cap * torch.tanh(logits_CV / cap)
                loss_C = torch.nn.functional.cross_entropy(logits_CV, target_C, reduction="none")
                losses.append(loss_C.cpu())
    found = torch.cat(losses).view(len(rows_NT), -1)
    if not bool(torch.isfinite(found).all()):
        raise NonFiniteLossError(
            "the loss on long text is not finite; check the model's weights, or set "
            "evaluation.dtype to float32"
        )
    return found


def key_tokens(judge: Any, rows_NT: Tensor, *, short_context: int) -> Tensor:
    """Return which tokens but the first of each row need more than a short context [N, T-1].

    A token is one where the judge's log-probability with all of the text before it exceeds that
    with a short context by MIN_GAIN_NATS, and is above MIN_LOG_PROBABILITY. Short contexts are
    `short_context` tokens and up to a quarter of that more.
    """
    long_NT = token_losses(judge, rows_NT)
    short_NT = long_NT.clone()  # within the first short context they are the same
    stride = max(1, short_context // STRIDE_SHARE)
    for start in range(stride, rows_NT.shape[1] - short_context, stride):
        window_NT = rows_NT[:, start : start + short_context + stride]
        found = token_losses(judge, window_NT)
        first = start + short_context - 1
        short_NT[:, first : first + stride] = found[:, short_context - 1 :][:, :stride]
    gain_NT = short_NT - long_NT
    return (gain_NT > MIN_GAIN_NATS) & (-long_NT > MIN_LOG_PROBABILITY)


def by_position(losses_NT: Tensor, keys_NT: Tensor | None, *, num_bins: int) -> dict[str, Any]:
    """Return the mean loss in bins of equally many positions, overall, and on the key tokens.

    Args:
        losses_NT: nats of every token but the first.
        keys_NT: which of them are key tokens, if that is known.
        num_bins: at most so many.

    Returns:
        `bins` (dicts with `end`, the last position counted from 1, and `nats`), `nats_per_token`,
        `perplexity`, `num_tokens`, and with keys `num_key_tokens` and `long_ppl`, the perplexity
        on them (None where there is none).
    """
    width = losses_NT.shape[1]
    count = min(num_bins, width)
    edges = [width * number // count for number in range(count + 1)]
    bins = [
        {"end": end + 1, "nats": float(losses_NT[:, start:end].double().mean())}
        for start, end in itertools.pairwise(edges)
    ]
    nats = float(losses_NT.double().mean())
    found: dict[str, Any] = {
        "bins": bins,
        "nats_per_token": nats,
        "perplexity": math.exp(nats),
        "num_tokens": losses_NT.numel(),
    }
    if keys_NT is not None:
        chosen = losses_NT[keys_NT].double()
        found["num_key_tokens"] = chosen.numel()
        found["long_ppl"] = math.exp(float(chosen.mean())) if chosen.numel() else None
    return found


def freeze_rows(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    length: int,
    num_tokens: int,
    judge: Callable[[], Any] | None,
    short_context: int,
) -> list[dict[str, Any]]:
    """Return the rows that every model is measured on, as `measure` reads them.

    Args:
        documents: held-out texts.
        tokenizer: the models' tokenizer.
        length: tokens of a row.
        num_tokens: about how many in all.
        judge: loads the model that tells key tokens, if it is asked.
        short_context: tokens of its short context.

    Raises:
        ConfigError: no document is so long, or the short context is not shorter.
    """
    rows = choose_rows(documents, tokenizer, length=length, num_tokens=num_tokens)
    found: list[dict[str, Any]] = [{"id": str(n), "ids": ids} for n, ids in enumerate(rows)]
    if judge is None:
        return found
    if short_context >= length:
        raise ConfigError(
            f"evaluation.perplexity.short_context: {short_context} tokens are not shorter than "
            f"evaluation.perplexity.lengths ({length})"
        )
    keys_NT = key_tokens(judge(), torch.tensor(rows), short_context=short_context)
    for row, keys_T in zip(found, keys_NT, strict=True):
        row["keys"] = (keys_T.nonzero()[:, 0] + 1).tolist()
    return found


def measure(model: Any, rows: Sequence[Mapping[str, Any]], *, num_bins: int) -> dict[str, Any]:
    """Return `by_position` of a model on frozen rows, with their key tokens where they have them.

    Args:
        model: a causal language model.
        rows: dicts with `ids`, and `keys`: places in the row of its key tokens.
        num_bins: bins of positions.
    """
    rows_NT = torch.tensor([row["ids"] for row in rows])
    losses_NT = token_losses(model, rows_NT)
    keys_NT = None
    if "keys" in rows[0]:
        keys_NT = torch.zeros_like(losses_NT, dtype=torch.bool)
        for number, row in enumerate(rows):
            keys_NT[number, torch.tensor(row["keys"], dtype=torch.long) - 1] = True
    return by_position(losses_NT, keys_NT, num_bins=num_bins)
