"""Attention at other positions than those of RoPE: longer windows without training.

RoPE is a rotation, so queries and keys that carry it are turned on by the difference of two
positions. Every row starts at position 0, and each key's position is its index.

Shapes: B rows, Q queries, H query heads, h key heads (h divides H), g = H / h, K keys, d head
dimension, P = d / 2 pairs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from longred.attention.cached import Cached
from longred.attention.sdpa import BLOCK_LOGITS, Rules

Positions = Callable[[Tensor], Tensor]
"""Positions of tokens → the positions that they are given instead; whole numbers."""

_TOLERANCE = 0.05
"""Largest relative error of turned queries and keys: bf16 rounds their angles."""

_PROBE_TOKENS, _PROBE_SHIFT = 16, 5

_CUDA_LOGITS = 2**27
"""Logits held at once on a GPU, where few queries at a time would leave it idle: half a GiB."""


class Part(NamedTuple):
    """Pairs of queries and keys that are compared at the same kind of positions.

    Attributes:
        first, end: position of a query → the keys that it sees so are those from `first` to before
            `end`; neither falls where the query's position rises.
        query_at, key_at: the positions that queries and keys are given; None for their own.
    """

    first: Positions
    end: Positions
    query_at: Positions | None = None
    key_at: Positions | None = None


class Scheme(NamedTuple):
    """How positions beyond the original window are brought into it.

    Attributes:
        num_plain: rows of at most so many keys keep their positions.
        parts: together they are all keys up to a query's own.
    """

    num_plain: int
    parts: tuple[Part, ...]


def group_size(original: int, target: int) -> tuple[int, int]:
    """Return the neighbour window and the group size of SelfExtend for two windows.

    The window is a quarter of the original one, as published for Llama-2. The group is the smallest
    at which no distance in the target window exceeds those of the original one. The rule is ours.
    """
    near = max(1, original // 4)
    size = 1
    while (target - 1) // size + near - near // size > original - 1:
        size += 1
    return near, size


def self_extend(original: int, target: int) -> Scheme:
    """Return SelfExtend: the `near` latest keys at their positions, the others in groups.

    Positions p of far pairs become p // G, those of queries near - near // G more. Source: arXiv
    2401.01325, algorithm 1.
    """
    near, size = group_size(original, target)
    grouped = Part(
        torch.zeros_like,
        lambda at: at - near + 1,
        lambda at: at // size + (near - near // size),
        lambda at: at // size,
    )
    neighbours = Part(lambda at: at - near + 1, lambda at: at + 1)
    return Scheme(near if size > 1 else target, (grouped, neighbours))


def dual_chunk(original: int, target: int) -> Scheme:
    """Return dual chunk attention: chunks of three quarters of the original window.

    Inside a chunk positions are true. To the chunk before, the first queries of a chunk keep their
    distance, which ends at the original window; to older chunks, all queries stand at its end.
    Source: arXiv 2402.17463, section 3 (without the logit scaling of the published code).
    """
    chunk = max(1, original * 3 // 4)
    last = original - 1

    def begin(at: Tensor) -> Tensor:
        return at // chunk * chunk

    def begin_before(at: Tensor) -> Tensor:
        return begin(at) - chunk

    def within(at: Tensor) -> Tensor:
        return at % chunk

    older = Part(torch.zeros_like, begin_before, lambda at: torch.full_like(at, last), within)
    successive = Part(begin_before, begin, lambda at: (at % chunk + chunk).clamp(max=last), within)
    same = Part(begin, lambda at: at + 1)
    # Rows of the original window have one chunk and its successive queries, at true distances.
    return Scheme(original, (older, successive, same))


SCHEMES: dict[str, Callable[[int, int], Scheme]] = {
    "self-extend": self_extend,
    "dual-chunk": dual_chunk,
}
"""Name → the scheme for an original and a target window."""


class Reindexed:
    """The attention of a model under a scheme, by its formula in fp32 or better.

    Args:
        scheme: positions.
        inv_freq_P: RoPE's frequencies; halves of a head are rotated together.
    """

    def __init__(self, scheme: Scheme, inv_freq_P: Tensor) -> None:
        self.scheme = scheme
        self._inv_freq_P = inv_freq_P.double()
        self._tables: dict[tuple[Positions, torch.dtype], tuple[Tensor, Tensor]] = {}

    def takes(self, num_keys: int) -> bool:
        """Return whether rows of so many keys have pairs at other positions."""
        return num_keys > self.scheme.num_plain

    def attend(
        self,
        query_BHQd: Tensor,
        key_BhKd: Tensor,
        value_BhKd: Tensor,
        rules: Rules,
        cached: Cached | None,
    ) -> Tensor:
        """Attend causally; queries are those of the last tokens, or of the last used slots.

        Returns:
            The heads' outputs [B, Q, H, d].

        Raises:
            ValueError: documents or a window are given.
        """
        if rules.documents is not None or rules.window is not None:
            raise ValueError("reindexed attention takes neither documents nor a sliding window")
        num_queries, num_keys, device = query_BHQd.shape[2], key_BhKd.shape[2], query_BHQd.device
        if cached is None:
            at_BQ = torch.arange(num_keys - num_queries, num_keys, device=device)[None]
        else:
            num_keys = cached.longest
            at_BQ = cached.used_B.long()[:, None] - 1
        precise = torch.promote_types(value_BhKd.dtype, torch.float32)
        with torch.autocast(device.type, enabled=False):
            query, key, value = (
                x.to(precise)
                for x in (query_BHQd, key_BhKd[:, :, :num_keys], value_BhKd[:, :, :num_keys])
            )
            kinds = {part.key_at for part in self.scheme.parts}
            keys = {
                key_at: turn(key, *self._table(key_at, num_keys, precise)) if key_at else key
                for key_at in kinds
            }
            logits = _CUDA_LOGITS if device.type == "cuda" else BLOCK_LOGITS
            size = max(1, logits // (len(query) * query.shape[1] * num_keys))
            outputs = []
            for start in range(0, num_queries, size):
                end = min(start + size, num_queries)
                # Queries of a cache stand anywhere in their rows.
                span = (0, num_keys - 1)
                if cached is None:
                    span = (num_keys - num_queries + start, num_keys - num_queries + end - 1)
                block = query[:, :, start:end], keys, value, at_BQ[:, start:end]
                outputs.append(self._block(*block, span, rules))
        return torch.cat(outputs, dim=2).transpose(1, 2).to(value_BhKd.dtype)

    def _block(
        self,
        query_BHQd: Tensor,
        keys: dict[Positions | None, Tensor],
        value_BhKd: Tensor,
        at_BQ: Tensor,
        span: tuple[int, int],
        rules: Rules,
    ) -> Tensor:
        """Return the heads' outputs [B, H, Q, d] of a block of queries.

        Args:
            query_BHQd: the queries.
            keys: all keys, by the positions that they were turned to.
            value_BhKd: all values.
            at_BQ: positions of the queries.
            span: the first and the last position that the queries can have.
            rules: scale and cap of the logits.
        """
        scale = query_BHQd.shape[-1] ** -0.5 if rules.scale is None else rules.scale
        query_BHQd, num_seen = scale * query_BHQd, span[1] + 1
        rows, num_heads, num_queries, _ = query_BHQd.shape
        shape = (rows, value_BhKd.shape[1], num_heads // value_BhKd.shape[1], num_queries, num_seen)
        logits_BhgQK = query_BHQd.new_full(shape, float("-inf"))
        for part in self.scheme.parts:
            # Bounds rise with the position, so these are all keys that a query sees so.
            low = max(0, int(part.first(torch.tensor(span[0]))))
            high = min(num_seen, int(part.end(torch.tensor(span[1]))))
            if low >= high:
                continue
            turned = query_BHQd
            if part.query_at is not None:
                by_BQ = part.query_at(at_BQ) - at_BQ
                turned = turn(query_BHQd, *self._angles(by_BQ, query_BHQd.dtype))
            key_at_K = torch.arange(low, high, device=at_BQ.device)
            at_BQ1 = at_BQ[..., None]
            seen_BQK = (key_at_K >= part.first(at_BQ1)) & (key_at_K < part.end(at_BQ1))
            found_BhgQK = _logits(turned, keys[part.key_at][:, :, low:high])
            if rules.softcap is not None:
                found_BhgQK = rules.softcap * torch.tanh(found_BhgQK / rules.softcap)
            view_BhgQK = logits_BhgQK[..., low:high]
            view_BhgQK.copy_(torch.where(seen_BQK[:, None, None], found_BhgQK, view_BhgQK))
        probs_BhgQK = logits_BhgQK.softmax(dim=-1)
        return (probs_BhgQK @ value_BhKd[:, :, :num_seen].unsqueeze(2)).flatten(1, 2)

    def _table(self, key_at: Positions, num_keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the angles that turn the first keys on; computed once for all layers and steps."""
        held = self._tables.get((key_at, dtype))
        if held is None or held[0].shape[-2] < num_keys:
            at_K = torch.arange(1 << (num_keys - 1).bit_length(), device=self._inv_freq_P.device)
            held = self._angles((key_at(at_K) - at_K)[None], dtype)
            self._tables[key_at, dtype] = held
        return held[0][:, :, :num_keys], held[1][:, :, :num_keys]

    def _angles(self, by_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines [B, 1, T, P] of positions to turn by."""
        angle_B1TP = (by_BT[..., None] * self._inv_freq_P)[:, None]
        return angle_B1TP.cos().to(dtype), angle_B1TP.sin().to(dtype)


def turn(x_BhTd: Tensor, cos_B1TP: Tensor, sin_B1TP: Tensor) -> Tensor:
    """Rotate halves of queries or keys, as RoPE does."""
    first, second = x_BhTd.chunk(2, dim=-1)
    rotated = (first * cos_B1TP - second * sin_B1TP, second * cos_B1TP + first * sin_B1TP)
    return torch.cat(rotated, dim=-1)


def _logits(query_BHQd: Tensor, key_BhKd: Tensor) -> Tensor:
    """Return the products [B, h, g, Q, K] of queries with the key heads that they share."""
    rows, _, num_queries, head_dim = query_BHQd.shape
    query_BhgQd = query_BHQd.reshape(rows, key_BhKd.shape[1], -1, num_queries, head_dim)
    return query_BhgQd @ key_BhKd.unsqueeze(2).transpose(-1, -2)


def reindex(model: PreTrainedModel, name: str, original: int, target: int) -> None:
    """Make a loaded model attend by a scheme.

    Args:
        model: a model whose attention is `longred` and guarded.
        name: a key of `SCHEMES`.
        original, target: windows, tokens.

    Raises:
        ValueError: the model does not rotate halves of whole heads by plain RoPE in all layers.
    """
    base: Any = model.base_model
    if problem := rope_problem(model.config):
        raise ValueError(problem)
    inv_freq_P = getattr(getattr(base, "rotary_emb", None), "inv_freq", None)
    if not isinstance(inv_freq_P, Tensor):
        raise ValueError("has not one set of RoPE frequencies for all layers")
    if problem := _turning_problem(model, Reindexed(Scheme(0, ()), inv_freq_P)):
        raise ValueError(problem)
    attention = Reindexed(SCHEMES[name](original, target), inv_freq_P)
    for layer in base.layers:
        layer.self_attn.reindexed = attention


def rope_problem(config: PreTrainedConfig) -> str | None:
    """Return why positions of a model cannot be changed, as far as its configuration says so."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        return f"has RoPE of type {kind}"
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    is_on = bool(window) and getattr(config, "use_sliding_window", True)
    if set(kinds) - {"full_attention"} or (is_on and not kinds):
        return "has layers without full attention"
    return None


@torch.no_grad()
def _turning_problem(model: PreTrainedModel, plain: Reindexed) -> str | None:
    """Compare queries and keys at other positions with those that are turned on to them."""
    tokens_1T = torch.arange(_PROBE_TOKENS, device=model.device)[None] % model.config.vocab_size
    found: list[dict[int, tuple[Tensor, Tensor]]] = []
    for shift in (0, _PROBE_SHIFT):
        held: dict[int, tuple[Tensor, Tensor]] = {}
        model.base_model(
            input_ids=tokens_1T,
            position_ids=torch.arange(shift, shift + _PROBE_TOKENS, device=model.device)[None],
            use_cache=False,
            capture=lambda at, held=held: held.update({at.layer: (at.query_BHTd, at.key_BhTd)}),
        )
        found.append(held)
    by_11 = torch.full((1, 1), _PROBE_SHIFT, device=model.device)
    cos_sin = plain._angles(by_11, torch.float32)
    for layer, before in found[0].items():
        for x, wanted in zip(before, found[1][layer], strict=True):
            if x.shape[-1] != 2 * cos_sin[0].shape[-1]:
                return "rotates only a part of each head"
            off = (turn(x.float(), *cos_sin) - wanted.float()).norm() / wanted.float().norm()
            if not off < _TOLERANCE:
                return f"does not rotate halves of whole heads by plain RoPE in layer {layer}"
    return None
