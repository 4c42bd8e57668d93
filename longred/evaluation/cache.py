"""RowCache: keys and values of several prompts, each in a row of its own.

transformers' caches write the new tokens of all rows to the same places, so that rows of different
lengths need padding and a mask. Here every row is filled from its first slot on, and rows copy
what they have in common.

Shapes: R rows of the cache, S slots per row, N rows of a forward pass, T new tokens per row,
h key heads, d head dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """A forward pass over parts of prompts.

    Attributes:
        sources: row of the cache whose first `start` slots precede the new tokens, for each row of
            the pass.
        start: number of tokens that precede the new ones.
        targets: row of the cache that each row of the pass is written to, with what precedes it;
            None to write nothing.
    """

    sources: Sequence[int]
    start: int
    targets: Sequence[int] | None


class RowCache:
    """Keys and values of all layers; transformers calls `update` in each layer.

    Args:
        num_rows: number of rows (R).
        num_slots: tokens that a row can hold (S).

    Attributes:
        now: what the current forward pass does: a `Piece`, or the number of tokens in each of the
            first rows [N], which get one new token each.
    """

    now: Piece | Tensor

    def __init__(self, num_rows: int, num_slots: int) -> None:
        self.num_rows, self.num_slots = num_rows, num_slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always given to the model."""
        return 0

    def update(
        self, key_NhTd: Tensor, value_NhTd: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens, and return all that the tokens can see.

        Returns:
            For a `Piece` those of `start` + T tokens, for one token per row all slots.
        """
        if layer_idx not in self._layers:
            self._layers[layer_idx] = self._allocate(key_NhTd), self._allocate(value_NhTd)
        pairs = zip(self._layers[layer_idx], (key_NhTd, value_NhTd), strict=True)
        keys, values = (self._store(stored, new.transpose(1, 2)) for stored, new in pairs)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _allocate(self, like_NhTd: Tensor) -> Tensor:
        _, num_heads, _, head_dim = like_NhTd.shape
        if like_NhTd.device.type == "cpu":
            # A head's keys lie side by side in memory: a step reads them in a third of the time.
            stored = like_NhTd.new_zeros(self.num_rows, num_heads, self.num_slots, head_dim)
            return stored.transpose(1, 2)
        # As torch's varlen kernel wants them.
        return like_NhTd.new_zeros(self.num_rows, self.num_slots, num_heads, head_dim)

    def _store(self, stored_RShd: Tensor, new_NThd: Tensor) -> Tensor:
        if isinstance(self.now, Tensor):
            count = len(new_NThd)
            rows = torch.arange(count, device=self.now.device)
            stored_RShd[rows, self.now] = new_NThd[:, 0]
            return stored_RShd[:count]
        sources, start, targets = self.now
        seen = new_NThd
        if start:
            before = stored_RShd[torch.tensor(sources, device=new_NThd.device), :start]
            seen = torch.cat([before, new_NThd], dim=1)
        if targets is not None:
            rows = torch.tensor(targets, device=new_NThd.device)
            stored_RShd[rows, : seen.shape[1]] = seen
        return seen

    def keep(self, rows: Sequence[int]) -> None:
        """Move some rows to the front, in this order."""
        for pair in self._layers.values():
            for stored_RShd in pair:
                stored_RShd[: len(rows)] = stored_RShd[list(rows)]
