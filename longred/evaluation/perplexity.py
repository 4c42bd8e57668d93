"""Loss on held-out text: within the original window, and at long lengths by position.

Plain perplexity averages over tokens that a short context predicts equally well; LongPPL counts
only key tokens, which a judge model predicts much better with the whole text before them (Fang et
al., arXiv 2410.23771, equations 2 to 4, with its thresholds).

Shapes: B rows of a batch, N rows, T tokens of a row, D hidden size, C tokens per chunk,
V vocabulary.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longred.errors import ConfigError, NonFiniteLossError
from longred.evaluation.counting import count_tokens, prefix_ids
from longred.evaluation.tasks import Row
from longred.models.architectures import head_input, logit_softcap
from longred.models.load import hidden_states
from longred.objectives.cross_entropy import long_loss

CHUNK_TOKENS = 1024
MANY_TEXTS = 20
"""Number of longest texts whose tokens are counted for advice."""
MIN_GAIN_NATS = 2.0
"""A key token gains more than this from the text beyond the short context (alpha)."""
MIN_LOG_PROBABILITY = -2.0
"""A key token has more than this log-probability with the whole text before it (beta)."""
STRIDE_SHARE = 4
"""Short contexts vary by up to 1 / STRIDE_SHARE of their length, so that one pass scores a stride
of tokens."""
_NOT_FINITE = (
    "the loss on {} text is not finite; check the model's weights, or set "
    "evaluation.dtype to float32"
)


def rows_of(text: str, tokenizer: Any, length: int) -> list[tuple[list[int], int]]:
    """Cut a document into rows of exactly `length` tokens that do not overlap.

    Rows begin with BOS if the tokenizer adds it.

    Returns:
        The tokens of each row, and the number of UTF-8 bytes that they predict.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    bos = prefix_ids(tokenizer)
    step = length - len(bos)
    rows = []
    for start in range(0, len(ids) - step + 1, step):
        # Without BOS nothing predicts the row's first token.
        first = start if bos else start + 1
        predicted = text[offsets[first][0] : offsets[start + step - 1][1]]
        rows.append((bos + ids[start : start + step], len(predicted.encode())))
    return rows


def _spread_rows(
    documents: Sequence[str], tokenizer: Any, length: int, num_tokens: int
) -> list[tuple[list[int], int]]:
    """Return about `num_tokens` in rows spread evenly over all documents; maybe none."""
    rows = [row for text in documents for row in rows_of(text, tokenizer, length)]
    count = min(len(rows), max(1, num_tokens // length))
    return [rows[i * len(rows) // count] for i in range(count)]


def refuse_short_texts(documents: Sequence[str], tokenizer: Any, *, window: int) -> None:
    """Refuse documents of which `held_out_loss` could measure none.

    Raises:
        ConfigError: no document is as long as the window.
    """
    # Machines that only measure have no pydantic.
    from longred.config.evaluation import MAX_SHORT_WINDOW

    longest = sorted(documents, key=len, reverse=True)
    if any(rows_of(text, tokenizer, window) for text in longest):
        return
    found = max((count_tokens(tokenizer, text) for text in longest[:MANY_TEXTS]), default=0)
    instead = f", or set evaluation.short_window={min(found, MAX_SHORT_WINDOW)}" if found else ""
    raise ConfigError(
        f"data.num_held_out_tokens: no held-out document has {window} tokens, on which the loss is "
        f"measured, the longest has {found}; hold out more text (data.validation_fraction){instead}"
    )


def held_out_loss(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    window: int,
    num_tokens: int,
    batch_rows: int,
) -> dict[str, float]:
    """Measure the loss on held-out documents in rows of exactly one window.

    Logits exist for one chunk of tokens at a time.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        documents: texts.
        window: tokens per row.
        num_tokens: approximate number of tokens to measure.
        batch_rows: rows per batch.

    Returns:
        `nats_per_token`, `bits_per_byte` (of UTF-8) and the measured `num_tokens`.

    Raises:
        ConfigError: no document is as long as the window.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    rows = _spread_rows(documents, tokenizer, window, num_tokens)
    if not rows:
        refuse_short_texts(documents, tokenizer, window=window)
    weight, cap = model.get_output_embeddings().weight, logit_softcap(model.config)
    last = model.config.num_hidden_layers
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), batch_rows):
            batch = [ids for ids, _ in rows[start : start + batch_rows]]
            input_ids_BT = torch.tensor(batch, device=model.device)
            hidden_BTD = hidden_states(model, input_ids_BT, layers=[last])[last]
            hidden_BTD = head_input(model.config, hidden_BTD)
            mean = long_loss(hidden_BTD, weight, input_ids_BT, logit_softcap=cap)
            nats += float(mean) * len(batch) * (window - 1)
    if not math.isfinite(nats):
        raise NonFiniteLossError(_NOT_FINITE.format("held-out"))
    num_targets = len(rows) * (window - 1)
    num_bytes = sum(size for _, size in rows)
    return {
        "nats_per_token": nats / num_targets,
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "num_tokens": num_targets,
    }


def choose_rows(
    documents: Sequence[str], tokenizer: Any, *, length: int, num_tokens: int
) -> list[list[int]]:
    """Return rows of exactly `length` tokens, spread evenly over all long documents.

    Raises:
        ConfigError: no document is long enough.
    """
    rows = _spread_rows(documents, tokenizer, length, num_tokens)
    if not rows:
        raise ConfigError(
            f"evaluation.perplexity.lengths: no held-out document has {length} tokens; hold out "
            "more text (data.validation_fraction), or choose shorter lengths"
        )
    return [ids for ids, _ in rows]


def token_losses(model: Any, rows_NT: Tensor) -> Tensor:
    """Return the cross-entropy of every token but the first of each row, in nats [N, T-1].

    Rows run one by one; logits exist for CHUNK_TOKENS tokens at a time.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
    """
    head, cap = model.get_output_embeddings(), logit_softcap(model.config)
    last = model.config.num_hidden_layers
    chunks = []
    with torch.no_grad():
        for row_T in rows_NT:
            tokens_T = row_T.to(model.device)
            hidden_TD = hidden_states(model, tokens_T[None], layers=[last])[last][0]
            hidden_TD = head_input(model.config, hidden_TD)
            for start in range(0, len(tokens_T) - 1, CHUNK_TOKENS):
                target_C = tokens_T[start + 1 : start + 1 + CHUNK_TOKENS]
                logits_CV = head(hidden_TD[start : start + len(target_C)]).float()
                if cap is not None:
                    logits_CV = cap * torch.tanh(logits_CV / cap)
                loss_C = torch.nn.functional.cross_entropy(logits_CV, target_C, reduction="none")
                chunks.append(loss_C.cpu())
    losses_NT = torch.cat(chunks).view(len(rows_NT), -1)
    if not bool(torch.isfinite(losses_NT).all()):
        raise NonFiniteLossError(_NOT_FINITE.format("long"))
    return losses_NT


def key_tokens(judge: Any, rows_NT: Tensor, *, short_context: int) -> Tensor:
    """Return which tokens but the first of each row are key tokens, bool [N, T-1].

    The judge's log-probability of a key token with the whole text before it exceeds that with a
    short context by MIN_GAIN_NATS, and is above MIN_LOG_PROBABILITY. Short contexts have
    `short_context` tokens and up to a quarter more.
    """
    long_NT = token_losses(judge, rows_NT)
    short_NT = long_NT.clone()  # equal within the first short context
    stride = max(1, short_context // STRIDE_SHARE)
    for start in range(stride, rows_NT.shape[1] - short_context, stride):
        window_NT = rows_NT[:, start : start + short_context + stride]
        window_losses_NT = token_losses(judge, window_NT)
        first = start + short_context - 1
        new_NT = window_losses_NT[:, short_context - 1 :][:, :stride]
        short_NT[:, first : first + stride] = new_NT
    gain_NT = short_NT - long_NT
    return (gain_NT > MIN_GAIN_NATS) & (-long_NT > MIN_LOG_PROBABILITY)


def by_position(losses_NT: Tensor, keys_NT: Tensor | None, *, num_bins: int) -> Row:
    """Average losses in bins of equally many positions, overall, and over the key tokens.

    Args:
        losses_NT: nats of every token but the first.
        keys_NT: which of them are key tokens, if known.
        num_bins: maximum number of bins.

    Returns:
        `bins` (dicts with `end`, the last position counted from 1, and `nats`), `nats_per_token`,
        `perplexity`, `num_tokens`, and with keys `num_key_tokens` and `long_ppl`, their perplexity
        (None without key tokens).
    """
    width = losses_NT.shape[1]
    count = min(num_bins, width)
    edges = [width * number // count for number in range(count + 1)]
    nats = float(losses_NT.double().mean())
    result: Row = {
        "bins": [
            {"end": end + 1, "nats": float(losses_NT[:, start:end].double().mean())}
            for start, end in itertools.pairwise(edges)
        ],
        "nats_per_token": nats,
        "perplexity": math.exp(nats),
        "num_tokens": losses_NT.numel(),
    }
    if keys_NT is not None:
        key_losses = losses_NT[keys_NT].double()
        result["num_key_tokens"] = key_losses.numel()
        result["long_ppl"] = math.exp(float(key_losses.mean())) if key_losses.numel() else None
    return result


def freeze_rows(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    length: int,
    num_tokens: int,
    judge: Callable[[], Any] | None,
    short_context: int,
) -> list[Row]:
    """Return the rows that every model is measured on, as `measure` reads them.

    Args:
        documents: held-out texts.
        tokenizer: the models' tokenizer.
        length: tokens per row.
        num_tokens: approximate number of tokens in all rows.
        judge: loads the model that finds key tokens; None for plain perplexity.
        short_context: tokens of the judge's short context.

    Raises:
        ConfigError: no document is long enough, or the short context is not shorter than a row.
    """
    rows = choose_rows(documents, tokenizer, length=length, num_tokens=num_tokens)
    frozen: list[Row] = [{"id": str(n), "ids": ids} for n, ids in enumerate(rows)]
    if judge is None:
        return frozen
    if short_context >= length:
        raise ConfigError(
            f"evaluation.perplexity.short_context: {short_context} tokens are not shorter than "
            f"evaluation.perplexity.lengths ({length})"
        )
    keys_NT = key_tokens(judge(), torch.tensor(rows), short_context=short_context)
    for row, keys_T in zip(frozen, keys_NT, strict=True):
        row["keys"] = (keys_T.nonzero()[:, 0] + 1).tolist()
    return frozen


def measure(model: Any, rows: Sequence[Mapping[str, Any]], *, num_bins: int) -> Row:
    """Measure a model on frozen rows; see `by_position`.

    Args:
        model: a causal language model.
        rows: dicts with `ids`, and optionally `keys`: the positions of key tokens in the row.
        num_bins: maximum number of bins of positions.
    """
    losses_NT = token_losses(model, torch.tensor([row["ids"] for row in rows]))
    keys_NT = None
    if "keys" in rows[0]:
        keys_NT = torch.zeros_like(losses_NT, dtype=torch.bool)
        for number, row in enumerate(rows):
            keys_NT[number, torch.tensor(row["keys"], dtype=torch.long) - 1] = True
    return by_position(losses_NT, keys_NT, num_bins=num_bins)
