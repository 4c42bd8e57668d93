"""Runner: runs a model over prompts without masks, and what prompts have in common only once.

Prompts of different lengths are padded on the right: causal attention never looks there. A prompt
that begins as an earlier one takes the keys and values of that part from a cache.

Shapes: N rows of a pass, T tokens, D hidden size, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longred.attention.cached import Cached
from longred.attention.function import ATTENTION_NAME
from longred.attention.heads import head_dim
from longred.errors import PreflightError
from longred.evaluation.cache import Piece, RowCache
from longred.method.rope import switches
from longred.models.architectures import head_input, logit_softcap, main_rope

log = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int64]
Found = TypeVar("Found")

MIN_SHARED = 32
"""Tokens that prompts must have in common to be worth a pass of their own."""
PASS_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Most tokens of a pass over prompts; one longer prompt is cut at PIECE_TOKENS."""
PIECE_TOKENS = 32768
MAX_BATCH_TOKENS = {"cpu": 65536, "cuda": 2**22}
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.8}
"""Share of the free memory that `auto` gives to a cache; the rest is for the passes."""
SIZE_CLASS = 1.25
"""Prompts are batched with prompts that are at most this factor longer."""


class Runner:
    """A loaded model with attention `longred`.

    Args:
        model: a causal language model.
        batch_tokens: most tokens that a cache holds, or that a batch without one has; `auto` takes
            what fits into memory. Halved when memory runs out.

    Raises:
        ValueError: the model has another attention, which would need masks.
    """

    def __init__(self, model: Any, batch_tokens: int | str = "auto") -> None:
        if model.config._attn_implementation != ATTENTION_NAME:
            raise ValueError(f"the model must be loaded with attention {ATTENTION_NAME!r}")
        self.model, self.device = model, torch.device(model.device)
        self._head, self._softcap = model.get_output_embeddings(), logit_softcap(model.config)
        self._switch = rope_switch(model.config)
        # Where the frequencies depend on the longest position of a pass, a prompt must be whole.
        self.splits = self._switch is None
        self.batch_tokens = int(
            auto_batch_tokens(model) if batch_tokens == "auto" else batch_tokens
        )

    @property
    def pass_tokens(self) -> int:
        """Most tokens of a pass over several prompts."""
        return min(self.batch_tokens, PASS_TOKENS[self.device.type])

    def is_beyond(self, num_tokens: int) -> bool:
        """Return whether RoPE turns a pass of so many tokens by its frequencies for long texts."""
        return self._switch is not None and num_tokens > self._switch

    def size_class(self, row: Tokens) -> int:
        """Return a number that rows which may run together share; longer rows have a larger one."""
        step = int(np.log(max(1, len(row))) / np.log(SIZE_CLASS))
        return 2 * step + self.is_beyond(len(row))

    def in_order(self, rows: Sequence[Tokens]) -> list[int]:
        """Return the numbers of rows, large sizes first, and those that begin alike side by side.

        What does not fit into memory fails at once.
        """
        # Bytes in this order compare as the numbers do, in a tenth of a list's memory.
        return sorted(
            range(len(rows)),
            key=lambda n: (-self.size_class(rows[n]), rows[n].astype(">u4").tobytes()),
        )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits_NV of hidden states, scaled and capped as the model does; fp32."""
        logits_NV: Tensor = self._head(head_input(self.model.config, hidden_ND)).float()
        if self._softcap is not None:
            logits_NV = self._softcap * torch.tanh(logits_NV / self._softcap)
        return logits_NV

    def step(self, tokens: Sequence[int], lengths: Sequence[int], cache: RowCache) -> Tensor:
        """Run one new token in each of the first rows of a cache; return its hidden_ND.

        Args:
            tokens: the new tokens.
            lengths: tokens that each row holds already.
            cache: receives the new tokens.
        """
        length_N = torch.tensor(lengths, device=self.device)
        cache.now = length_N
        cached = Cached((length_N + 1).to(torch.int32), max(lengths) + 1)
        tokens_N1 = torch.tensor(tokens, device=self.device)[:, None]
        hidden_N1D = self._run(tokens_N1, length_N[:, None], cache, cached=cached)
        return hidden_N1D[:, 0]

    def prefill(
        self, prompts: Sequence[Tokens], cache: RowCache, piece: Piece, sizes: Sequence[int] = ()
    ) -> Tensor:
        """Run what follows the first `piece.start` tokens of some prompts.

        Args:
            prompts: whole prompts.
            cache: holds what precedes, and receives the prompts.
            piece: rows of the cache.
            sizes: tokens of each prompt that are run up to; all if empty.

        Returns:
            hidden_NTD of the new tokens. The rows of shorter prompts are padded at their end.
        """
        ends = list(sizes) or [len(prompt) for prompt in prompts]
        start, longest = piece.start, max(ends)
        rows = [torch.from_numpy(p[start:end]) for p, end in zip(prompts, ends, strict=True)]
        tokens_NT = pad_sequence(rows, batch_first=True).to(self.device)
        cut = PIECE_TOKENS if self.splits and piece.targets is not None else longest
        parts = []
        for first in range(start, longest, max(1, cut)):
            part = tokens_NT[:, first - start : first - start + cut]
            cache.now = piece
            positions_T = torch.arange(first, first + part.shape[1], device=self.device)
            parts.append(self._run(part, positions_T.expand(len(part), -1), cache))
            if piece.targets is not None:
                piece = Piece(piece.targets, first + part.shape[1], piece.targets)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def shared(self, prompts: Sequence[Tokens], limit: int) -> int:
        """Return how many tokens all prompts begin with, at most `limit`; 0 if too few to use."""
        if not self.splits:
            return 0
        count = min([limit, *(common(prompts[0], prompt) for prompt in prompts[1:])])
        return count if count >= MIN_SHARED else 0

    def _run(
        self, tokens_NT: Tensor, positions_NT: Tensor, cache: RowCache, **extra: Any
    ) -> Tensor:
        output = self.model.base_model(
            input_ids=tokens_NT,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        hidden_NTD: Tensor = output.last_hidden_state
        return hidden_NTD

    def hidden_of(
        self, rows: Sequence[Tokens], num_last: Sequence[int]
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield the hidden states at the last tokens of rows, batch by batch.

        Args:
            rows: tokens.
            num_last: number of last tokens of each row whose hidden states are wanted.

        Yields:
            Numbers of the rows of a batch, and for each its hidden states [num_last, D].
        """
        trunk, cache = np.empty(0, np.int64), RowCache(1, 0)
        for numbers in self._batches(rows):
            batch = [rows[number] for number in numbers]
            unseen = min(len(rows[n]) - num_last[n] for n in numbers)
            reused = min(unseen, common(trunk, batch[0])) if self.splits else 0
            count = self.shared(batch, unseen)
            if count:
                if count > cache.num_slots:
                    cache, reused = RowCache(1, max(map(len, batch))), 0
                if reused < count:
                    self.prefill(batch[:1], cache, Piece([0], reused, [0]), [count])
                    trunk = batch[0][:count]
            hidden_NTD = self.prefill(batch, cache, Piece([0] * len(batch), count, None))
            ends = [len(row) - count for row in batch]
            yield (
                numbers,
                [
                    hidden_TD[end - num_last[number] : end]
                    for hidden_TD, end, number in zip(hidden_NTD, ends, numbers, strict=True)
                ],
            )

    def _batches(self, rows: Sequence[Tokens]) -> Iterator[list[int]]:
        """Yield numbers of rows of similar size whose padded tokens fit into a pass.

        What all of them begin with does not count, since it runs once; but a layer at a time, all
        rows hold its keys, and these count towards `batch_tokens`.
        """
        batch: list[int] = []
        longest = begin = 0
        for number in self.in_order(rows):
            row = rows[number]
            alike = self.shared([rows[batch[0]], row], begin) if batch else len(row)
            most = max(longest, len(row))
            is_other = bool(batch) and self.size_class(row) != self.size_class(rows[batch[0]])
            num_rows = len(batch) + 1
            is_full = (most - alike) * num_rows > self.pass_tokens or (
                most * num_rows > self.batch_tokens
            )
            if batch and (is_other or is_full):
                yield batch
                batch, alike, most = [], len(row), len(row)
            batch.append(number)
            longest, begin = most, alike
        if batch:
            yield batch

    def halving(self, work: Callable[[], Found], smallest: int) -> Found:
        """Do work that uses memory in proportion to `batch_tokens`; halve these if it runs out.

        Args:
            work: does what is left to do, also when it is called again.
            smallest: tokens that it needs at least.

        Raises:
            PreflightError: these do not fit.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                if self.batch_tokens <= smallest:
                    raise PreflightError(
                        "evaluation.batch_tokens: a single prompt does not fit into the memory of "
                        f"{self.device} ({error}); use shorter lengths or a larger GPU"
                    ) from error
            self.batch_tokens //= 2
            torch.cuda.empty_cache()
            log.warning("out of memory: going on with %d tokens at a time", self.batch_tokens)


def common(first: Tokens, second: Tokens) -> int:
    """Return how many tokens two rows begin with in common."""
    size = min(len(first), len(second))
    differs = first[:size] != second[:size]
    return int(differs.argmax()) if differs.any() else size


def rope_switch(config: Any) -> int | None:
    """Return the number of tokens beyond which RoPE has other frequencies; None if it has not.

    transformers chooses them by the longest position of a pass, so that rows on both sides of it
    cannot run together.
    """
    rope = main_rope(config)
    return int(rope["original_max_position_embeddings"]) if switches(rope) else None


def auto_batch_tokens(model: Any) -> int:
    """Return how many tokens of keys and values fit into the memory that is free."""
    config, device = model.config, torch.device(model.device).type
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    item = torch.finfo(model.dtype).bits // 8
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim(config) * item
    if device == "cuda":
        # What this process keeps for itself, of the model before, counts as free.
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    fitting = int(MEMORY_SHARE[device] * free) // int(token_bytes)
    return max(1, min(MAX_BATCH_TOKENS[device], fitting))
