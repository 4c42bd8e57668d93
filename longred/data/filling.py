"""Feeds one source's documents into its share of the buckets, window by window."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.data.documents import Document, is_held_out
from longred.data.packing import pack
from longred.data.quotas import SPLITS, Quota, draw
from longred.data.sources import OpenSource
from longred.data.spool import SpoolFolder, ends_name
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 2**18
MIN_HELD_OUT_DOCUMENTS = 30

Tokens = npt.NDArray[Any]


class Filler:
    """One source on its way into the buckets; `state` and `load_state` make it resumable.

    Args:
        source: where documents come from.
        quotas: what the source owes each bucket of both splits; updated in place.
        tokenizer: turns text into ids.
        spools: where blocks go.
        validation_fraction: share of documents that are held out.
        held_out_text_bytes: keep this much held-out text as whole documents.
    """

    def __init__(
        self,
        source: OpenSource,
        quotas: Sequence[Quota],
        tokenizer: TextTokenizer,
        spools: SpoolFolder,
        *,
        validation_fraction: float,
        held_out_text_bytes: int,
    ) -> None:
        self.source, self.quotas, self.tokenizer, self.spools = source, quotas, tokenizer, spools
        self.validation_fraction = validation_fraction
        self.held_out_text_bytes = held_out_text_bytes if source.is_natural else 0
        self.num_windows = 0
        self.full_after_windows = 0
        self.finished = False
        self.num_read = 0
        self.num_texts, self.num_text_bytes = 0, 0
        self.num_documents = dict.fromkeys(SPLITS, 0)
        self.dropped: Counter[str] = Counter()
        self._pools: dict[str, list[Tokens]] = {split: [] for split in SPLITS}
        self._spare: list[tuple[Quota, Tokens]] = []
        self._skipping = False

    def fill(self, save: Callable[[], None], advance: Callable[[], None]) -> None:
        """Read windows until the quotas are met or the source ends.

        Args:
            save: called after each window, when `state` is complete.
            advance: called after each batch of documents, to show progress.

        Raises:
            ConfigError: the source has no documents, or too many of its rows are bad.
        """
        self._skipping = self.num_windows > 0
        for number, window in enumerate(self.source.windows(self._is_wanted)):
            if number < self.num_windows:
                self._skipping = number + 1 < self.num_windows
                continue
            before = self._train_blocks()
            self._fill_window(window, advance)
            self.num_windows = number + 1
            if not self._needs("train"):
                self.full_after_windows = self.full_after_windows or self.num_windows
            exhausted = not self.source.is_natural and before == self._train_blocks()
            if self._has_enough() or (exhausted and self._needs("train")):
                break
            save()
        self.source.intake.end()
        if not self.num_windows:
            raise ConfigError(
                f"{self.source.key}: {self.source.config.name} has no usable documents"
            )
        self.finished = True
        self._check_conservation()
        save()

    def state(self) -> dict[str, Any]:
        """Return everything that changes, as JSON values; complete between windows."""
        intake = self.source.intake
        return {
            "num_windows": self.num_windows,
            "full_after_windows": self.full_after_windows,
            "finished": self.finished,
            "num_read": self.num_read,
            "num_texts": self.num_texts,
            "num_text_bytes": self.num_text_bytes,
            "num_documents": dict(self.num_documents),
            "dropped": dict(self.dropped),
            "quotas": [[quota.written, quota.available] for quota in self.quotas],
            "seen": intake.seen,
            "rejected": dict(intake.rejected),
            "quarantine": intake.quarantine if self.finished else [],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Counts of rows are taken over only from a finished source; any other is read again from its
        first window, where rows are counted again.
        """
        self.num_windows = state["num_windows"]
        self.full_after_windows = state["full_after_windows"]
        self.finished = state["finished"]
        self.num_read = state["num_read"]
        self.num_texts, self.num_text_bytes = state["num_texts"], state["num_text_bytes"]
        self.num_documents = dict(state["num_documents"])
        self.dropped = Counter(state["dropped"])
        for quota, (written, available) in zip(self.quotas, state["quotas"], strict=True):
            quota.written, quota.available = written, available
        if self.finished:
            intake = self.source.intake
            intake.seen, intake.quarantine = state["seen"], list(state["quarantine"])
            intake.rejected = Counter(state["rejected"])

    def num_written(self) -> int:
        """Return the tokens written to blocks of both splits."""
        return sum(quota.written * quota.block_length for quota in self.quotas)

    def spool_name(self, quota: Quota) -> str:
        """Return the name of the spool that holds this source's blocks for a quota."""
        return f"{quota.split}-{quota.bucket}-{self.source.config.name}.bin"

    @property
    def texts_name(self) -> str:
        """Name of the spool that holds this source's held-out texts, one JSON object a line."""
        return f"documents-{self.source.config.name}.jsonl"

    def _fill_window(self, window: list[Document], advance: Callable[[], None]) -> None:
        late: list[tuple[Document, Tokens]] = []
        for batch in self._batches(window):
            texts = [document.text for document in batch]
            for document, ids in zip(batch, self.tokenizer.encode(texts), strict=True):
                usable = self._count(document, ids)
                if len(usable) and not self._place(document, usable):
                    late.append((document, usable))
            for split in SPLITS:
                if not self._needs(split):
                    self._pack(split)
            advance()
        self._end_window(late)

    def _end_window(self, late: list[tuple[Document, Tokens]]) -> None:
        """Pack what waits, filling up from what was not needed before, and drop the rest."""
        for split in SPLITS:
            self._pack(split)
        for document, ids in late:
            split = self._split(document.id)
            if not self._place(document, ids):
                self.dropped["not_needed"] += len(ids)
            elif not self._needs(split):
                self._pack(split)
        for split in SPLITS:
            self._pack(split)
            self.dropped["not_packed"] += sum(map(len, self._pools[split]))
            self._pools[split].clear()
            for quota in self._of(split):
                quota.pending = 0
        for quota, ids in self._spare:
            used = ids[: quota.remaining]
            self._write_whole(quota, used)
            self.dropped["spare"] += len(ids) - len(used)
        self._spare.clear()

    def _batches(self, window: list[Document]) -> Iterator[list[Document]]:
        """Yield documents that are still wanted, in the order of their ids."""
        batch: list[Document] = []
        num_characters = 0
        for document in sorted(window, key=lambda document: document.id):
            split = self._split(document.id)
            if split == "held_out":
                self._keep_text(document)
            if not self._needs(split):
                continue
            batch.append(document)
            num_characters += len(document.text)
            if len(batch) >= BATCH_DOCUMENTS or num_characters >= BATCH_CHARACTERS:
                yield batch
                batch, num_characters = [], 0
        if batch:
            yield batch

    def _count(self, document: Document, ids: Tokens) -> Tokens:
        """Count a document's tokens; return those that can be placed, none of a short document."""
        self.num_read += len(ids)
        limit = len(ids) if self.source.is_natural else self.source.config.length
        self.dropped["beyond_length"] += len(ids[limit:])
        ids = ids[:limit]
        quotas = [quota for quota in self._of(self._split(document.id)) if quota.needed]
        for quota in quotas:
            quota.available += len(ids) if len(ids) >= quota.minimum else 0
        if all(len(ids) < quota.minimum for quota in quotas):
            self.dropped["too_short"] += len(ids)
            return ids[:0]
        return ids

    def _place(self, document: Document, ids: Tokens) -> bool:
        """Write a document's whole blocks to the bucket drawn for it; False when none needs it."""
        split = self._split(document.id)
        drawn = draw(document.id, len(ids), self._of(split))
        if drawn is None:
            return False
        self.num_documents[split] += 1
        length = drawn.block_length
        whole = len(ids) // length * length
        first = length * min(drawn.blocks_per_document, -(-drawn.remaining // length))
        self._write_whole(drawn, ids[: min(whole, first)])
        if whole > first:
            self._spare.append((drawn, ids[first:whole]))
        rest = ids[whole:]
        if drawn.bucket == "long" and drawn.remaining and len(rest) >= drawn.minimum:
            self._pools[split].append(rest)
            drawn.pending += len(rest)
        else:
            self.dropped["rest"] += len(rest)
        return True

    def _write_whole(self, quota: Quota, ids: Tokens) -> None:
        if len(ids):
            self._write(
                quota, ids, list(range(quota.block_length, len(ids) + 1, quota.block_length))
            )

    def _pack(self, split: str) -> None:
        """Make blocks of the pieces that wait for the long bucket; unused pieces go on waiting."""
        pool = self._pools[split]
        if not pool:
            return
        quota = next(quota for quota in self._of(split) if quota.bucket == "long")
        blocks = pack([len(p) for p in pool], quota.block_length, quota.needed - quota.written)
        used: set[int] = set()
        for block in blocks:
            parts = [pool[piece][:size] for piece, size in block]
            used.update(piece for piece, _ in block)
            self.dropped["cut"] += sum(len(pool[piece]) - size for piece, size in block)
            self._write(quota, np.concatenate(parts), np.cumsum([len(p) for p in parts]).tolist())
        self._pools[split] = [p for number, p in enumerate(pool) if number not in used]
        quota.pending = sum(map(len, self._pools[split]))

    def _write(self, quota: Quota, ids: Tokens, ends: list[int]) -> None:
        name = self.spool_name(quota)
        start = quota.written * quota.block_length
        self.spools.append(name, ids.astype(ids.dtype.newbyteorder("<")).tobytes())
        if quota.bucket == "long":
            self.spools.append(ends_name(name), (np.array(ends, dtype="<u8") + start).tobytes())
        quota.written += len(ids) // quota.block_length

    def _keep_text(self, document: Document) -> None:
        if not self._needs_texts():
            return
        row = {
            "id": document.id,
            "source": self.source.config.name,
            "path": document.path,
            "text": document.text,
        }
        line = json.dumps(row, sort_keys=True).encode() + b"\n"
        self.spools.append(self.texts_name, line)
        self.num_texts += 1
        self.num_text_bytes += len(line)

    def _needs_texts(self) -> bool:
        if not self.held_out_text_bytes:
            return False
        few = self.num_texts < MIN_HELD_OUT_DOCUMENTS
        return few or self.num_text_bytes < self.held_out_text_bytes

    def _has_enough(self) -> bool:
        """Return whether reading can stop; held-out text at most doubles what is read."""
        if self._needs("train"):
            return False
        if self.num_windows >= 2 * self.full_after_windows and self.num_windows > 1:
            return True
        return not self._needs("held_out") and not self._needs_texts()

    def _needs(self, split: str) -> bool:
        return any(quota.remaining for quota in self._of(split))

    def _is_wanted(self, document: str) -> bool:
        return not self._skipping and self._needs(self._split(document))

    def _of(self, split: str) -> list[Quota]:
        return [quota for quota in self.quotas if quota.split == split]

    def _split(self, document: str) -> str:
        return "held_out" if is_held_out(document, self.validation_fraction) else "train"

    def _train_blocks(self) -> int:
        return sum(quota.written for quota in self._of("train"))

    def _check_conservation(self) -> None:
        accounted = self.num_written() + self.dropped.total()
        if accounted != self.num_read:
            raise RuntimeError(
                f"{self.source.config.name}: {self.num_read} tokens were read, but "
                f"{accounted} written or dropped"
            )
