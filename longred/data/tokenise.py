"""Tokenises one shard: writes token ids, a table of documents and, last, a record."""

import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from longred.config import DataConfig
from longred.data.decontamination import evaluation_texts
from longred.data.documents import MIN_HELD_OUT_DOCUMENTS, Document, Intake, is_held_out
from longred.data.shards import TABLE, Shard, ShardRecord, read_record, to_lines, write_atomically
from longred.data.sources import kind_of
from longred.data.tokens import TextTokenizer
from longred.store.artifacts import sha256_file, storage_errors, write_json

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 2**18
# Size of the whole held-out texts to save: 8 times the held-out tokens, at about 4 bytes each.
TEXT_BYTES_PER_TOKEN = 32
TICK_SECONDS = 0.5
SUFFIXES = (".bin", ".npy", ".texts.jsonl", ".quarantine.jsonl", ".contaminated.jsonl")

Count = Callable[[int, int, int, int], None]
"""Called with increments: bytes of text, documents, tokens and rejected rows."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Progress of tokenising: bytes of text, documents, tokens, rejected rows."""

    num_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    rejected: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Return the sum of each count."""
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


Tick = Callable[[Counts], None]
"""Called periodically with what has been done since `run_shards` began."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of one preparation have in common.

    Attributes:
        config: the recipe's data section.
        tokenizer_folder: Hugging Face folder of the model.
        work: folder of the shards' files.
        identity: digest of settings, tokenizer and texts.
        is_rehearsal: whether the work folder is deleted afterwards, so that no message names it.
    """

    config: DataConfig
    tokenizer_folder: str
    work: str
    identity: str
    is_rehearsal: bool = False

    @property
    def folder(self) -> Path:
        """The work folder as a path."""
        return Path(self.work)

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        return {**asdict(self), "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the job from its `to_json` values."""
        return cls(**{**values, "config": DataConfig(**values["config"])})


def tokenise_shard(job: Job, shard: Shard, count: Count | None = None) -> ShardRecord:
    """Tokenise a shard and return its record; a finished shard is reused.

    The output depends only on the job and the shard's parts. Files of `shards.Shard.path`: `.bin`
    token ids of all documents, `.npy` their table, `.texts.jsonl` whole held-out texts,
    `.quarantine.jsonl` rejected rows, `.contaminated.jsonl` skipped documents, `.json` the record.

    Args:
        job: settings, tokenizer and work folder.
        shard: what to read.
        count: called after each batch.

    Raises:
        ConfigError: the source is wrong; a dataset's files cannot be parsed.
        PreflightError: the source cannot be reached.
        StorageError: the disk is full.
    """
    found = read_record(shard, job.folder, job.identity)
    if found:
        return found
    with storage_errors(job.folder):
        shard.path(job.folder, "").parent.mkdir(parents=True, exist_ok=True)
    return _Tokeniser(job, shard, count).run()


class _Tokeniser:
    """Reads, tokenises and writes one shard."""

    def __init__(self, job: Job, shard: Shard, count: Count | None) -> None:
        self.job, self.shard, self.count = job, shard, count
        self.config = job.config
        self.source = job.config.sources[shard.source]
        self.kind = kind_of(self.source)
        self.tokenizer = load_tokenizer(job.tokenizer_folder, self.config.add_bos)
        self.intake = Intake(self.source.name, self.config.max_document_characters)
        patterns = tuple(self.config.decontaminate) if self.kind.is_natural else ()
        self.evaluation = evaluation_texts(patterns) if patterns else None
        self.contaminated: list[dict[str, Any]] = []
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.texts: list[bytes] = []
        self.text_rows: list[int] = []
        self.text_bytes = self.read_tokens = self.written_tokens = self.num_rejected = 0

    def run(self) -> ShardRecord:
        write_atomically(self._path(".bin"), self._tokens())
        table = io.BytesIO()
        np.save(table, np.array(self.rows, dtype=TABLE), allow_pickle=False)
        write_atomically(self._path(".npy"), [table.getvalue()])
        write_atomically(self._path(".texts.jsonl"), self.texts)
        write_atomically(self._path(".quarantine.jsonl"), to_lines(self.intake.quarantine))
        write_atomically(self._path(".contaminated.jsonl"), to_lines(self.contaminated))
        paths = {suffix: self._path(suffix) for suffix in SUFFIXES}
        record = ShardRecord(
            identity=self.job.identity,
            seen=self.intake.seen,
            rejected=dict(sorted(self.intake.rejected.items())),
            num_lines=dict(self.intake.num_lines),
            first_rejected=self.intake.first,
            fields_instead=self.intake.fields_instead,
            documents=len(self.rows),
            contaminated=len(self.contaminated),
            read_tokens=self.read_tokens,
            written_tokens=self.written_tokens,
            text_rows=self.text_rows,
            text_bytes=self.text_bytes,
            files={
                suffix: {"size": path.stat().st_size, "sha256": sha256_file(path)}
                for suffix, path in paths.items()
            },
        )
        write_json(self._path(".json"), asdict(record))
        return record

    def _tokens(self) -> Iterator[bytes]:
        """Yield the tokens of all documents."""
        for batch in self._batches():
            yield self._encode(batch)

    def _batches(self) -> Iterator[list[Document]]:
        """Yield the wanted documents of the shard, a bounded amount of text at a time."""
        batch: list[Document] = []
        num_characters = 0
        for document in self.kind.read(self.config, self.source, self.shard.parts, self.intake):
            if not self._is_wanted(document):
                continue
            batch.append(document)
            num_characters += len(document.text)
            if len(batch) >= BATCH_DOCUMENTS or num_characters >= BATCH_CHARACTERS:
                yield batch
                batch, num_characters = [], 0
        yield batch

    def _encode(self, batch: list[Document]) -> bytes:
        """Tokenise a batch, add its rows to the table and count it."""
        chunks = []
        encoded = self.tokenizer.encode([document.text for document in batch])
        num_bytes, tokens_before = 0, self.read_tokens
        for document, ids in zip(batch, encoded, strict=True):
            raw = document.text.encode()
            num_bytes += len(raw)
            self.read_tokens += len(ids)
            if not self.kind.is_natural:
                ids = ids[: self.source.length]
            if self.kind.is_natural and self._is_held_out(document):
                self._save_text(document)
            split, draw = int(document.id[:16], 16), int(document.id[16:32], 16)
            text = int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")
            self.rows.append((split, draw, text, self.written_tokens, len(ids)))
            self.written_tokens += len(ids)
            chunks.append(ids.tobytes())
        if self.count:
            rejected_before, self.num_rejected = self.num_rejected, self.intake.rejected.total()
            num_tokens = self.read_tokens - tokens_before
            self.count(num_bytes, len(batch), num_tokens, self.num_rejected - rejected_before)
        return b"".join(chunks)

    def _is_wanted(self, document: Document) -> bool:
        """Return whether to tokenise a document; contaminated ones are listed."""
        if self.shard.held_out_only and not self._is_held_out(document):
            return False
        words = self.evaluation.find(document.text) if self.evaluation else None
        if words:
            row = {"id": document.id, "path": document.path, "offset": document.offset}
            self.contaminated.append({**row, "source": self.source.name, "words": words})
        return words is None

    def _is_held_out(self, document: Document) -> bool:
        return is_held_out(document.id, self.config.validation_fraction)

    def _save_text(self, document: Document) -> None:
        """Save a whole held-out text, until this shard alone has enough of them."""
        wanted_bytes = TEXT_BYTES_PER_TOKEN * self.config.num_held_out_tokens
        if len(self.texts) < MIN_HELD_OUT_DOCUMENTS or self.text_bytes < wanted_bytes:
            row = {"id": document.id, "source": self.source.name, "path": document.path}
            (line,) = to_lines([{**row, "text": document.text}])
            self.texts.append(line)
            self.text_rows.append(len(self.rows))
            self.text_bytes += len(line)

    def _path(self, suffix: str) -> Path:
        return self.shard.path(self.job.folder, suffix)


@functools.lru_cache(maxsize=2)
def load_tokenizer(folder: str, add_bos: bool | None) -> TextTokenizer:
    """Return a job's tokenizer; cached, so that each process reads it once."""
    return TextTokenizer(Path(folder), add_bos=add_bos)


def finished(job: Job, shards: Sequence[Shard]) -> tuple[Counts, list[Shard]]:
    """Return the counts of the finished shards, and the shards that have no record yet."""
    counts, missing = Counts(), []
    for shard in shards:
        record = read_record(shard, job.folder, job.identity)
        if record:
            rejected = sum(record.rejected.values())
            counts += Counts(shard.num_bytes, record.documents, record.read_tokens, rejected)
        else:
            missing.append(shard)
    return counts, missing


def wait_for(futures: Sequence[Future[Any]], tick: Callable[[], object]) -> None:
    """Wait for futures and call `tick` periodically; the first error ends the wait."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=TICK_SECONDS, return_when="FIRST_COMPLETED")
        for future in done:
            future.result()
        tick()
