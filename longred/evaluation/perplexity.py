"""How well a model predicts held-out text within the original window.

Shapes: B rows, T tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from longred.errors import ConfigError, NonFiniteLossError
from longred.models.architectures import logit_softcap
from longred.models.load import hidden_states
from longred.objectives.cross_entropy import long_loss


def held_out_loss(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    window: int,
    num_tokens: int,
    batch_rows: int,
) -> dict[str, float]:
    """Return the loss on held-out documents, cut into rows of exactly one window.

    Rows begin with BOS where the tokenizer has one, do not overlap, and are spread evenly over all
    documents. No logits of more than a chunk of tokens are held.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        documents: texts.
        window: tokens of a row.
        num_tokens: about how many tokens to measure.
        batch_rows: rows at a time.

    Returns:
        `nats_per_token`, `bits_per_byte` (of UTF-8) and `num_tokens` measured.

    Raises:
        ConfigError: no document is as long as the window.
    """
    rows = [row for text in documents for row in rows_of(text, tokenizer, window)]
    if not rows:
        raise ConfigError(
            f"data.num_held_out_tokens: no held-out document has {window} tokens; hold out more"
        )
    count = min(len(rows), max(1, num_tokens // window))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    weight, cap = model.get_output_embeddings().weight, logit_softcap(model.config)
    last = model.config.num_hidden_layers
    nats = 0.0
    with torch.no_grad():
        for start in range(0, count, batch_rows):
            batch = [ids for ids, _ in chosen[start : start + batch_rows]]
            input_ids_BT = torch.tensor(batch, device=model.device)
            hidden_BTD = hidden_states(model, input_ids_BT, layers=[last])[last]
            mean = long_loss(hidden_BTD, weight, input_ids_BT, logit_softcap=cap)
            nats += float(mean) * len(batch) * (window - 1)
    if not math.isfinite(nats):
        raise NonFiniteLossError(
            "the loss on held-out text is not finite; check the model's weights, or set "
            "evaluation.dtype to float32"
        )
    num_targets = count * (window - 1)
    num_bytes = sum(size for _, size in chosen)
    return {
        "nats_per_token": nats / num_targets,
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "num_tokens": num_targets,
    }


def rows_of(text: str, tokenizer: Any, window: int) -> list[tuple[list[int], int]]:
    """Return the rows of a document, each with the bytes of the text that it predicts."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    step = window - len(bos)
    rows = []
    for start in range(0, len(ids) - step + 1, step):
        # Without BOS the row's first token is context and predicted by nothing.
        first = start + 1 - len(bos)
        predicted = text[offsets[first][0] : offsets[start + step - 1][1]]
        rows.append((bos + ids[start : start + step], len(predicted.encode())))
    return rows
