"""Tokenises one shard: text in, token ids and a table of documents out, the record last."""

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from longred.config import DataConfig
from longred.data.decontamination import evaluation_texts
from longred.data.documents import Document, is_held_out
from longred.data.intake import Intake
from longred.data.kinds import kind_of
from longred.data.shards import TABLE, Shard, ShardRecord, read_record, to_lines, write_whole
from longred.data.tokens import TextTokenizer
from longred.store.artifacts import sha256_file, storage_errors, write_json

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 2**18
# Whole held-out texts: eight times the held-out tokens, at about four bytes each.
TEXT_BYTES_PER_TOKEN = 32
MIN_HELD_OUT_DOCUMENTS = 30

Count = Callable[[int, int, int, int], None]
"""Told of more bytes of text, documents, tokens and rejected rows."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for every shard of a preparation.

    Attributes:
        config: the recipe's data section.
        tokenizer_folder: Hugging Face folder of the model.
        work: folder that the shards' files go to.
        identity: of settings, tokenizer and texts.
    """

    config: DataConfig
    tokenizer_folder: str
    work: str
    identity: str

    @property
    def folder(self) -> Path:
        """The work folder as a path."""
        return Path(self.work)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "tokenizer_folder": self.tokenizer_folder,
            "work": self.work,
            "identity": self.identity,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the job that `to_json` gave."""
        return cls(**{**values, "config": DataConfig(**values["config"])})


def tokenise_shard(job: Job, shard: Shard, count: Count | None = None) -> ShardRecord:
    """Tokenise a shard, where that has not been done, and return its record.

    What is written depends on the job and the shard's parts only. Files of `shards.Shard.path`:
    `.bin` token ids of all documents, `.npy` their table, `.texts.jsonl` whole held-out texts,
    `.quarantine.jsonl` rejected rows, `.contaminated.jsonl` what was left out, `.json` the record.

    Args:
        job: settings, tokenizer and place.
        shard: what to read.
        count: told how far it is.

    Raises:
        ConfigError: too many rows of the shard are bad.
        PreflightError: the source cannot be reached.
        StorageError: the disk is full.
    """
    found = read_record(shard, job.folder, job.identity)
    if found:
        return found
    with storage_errors(job.folder):
        shard.path(job.folder, "").parent.mkdir(parents=True, exist_ok=True)
    return _Tokeniser(job, shard, count or (lambda *_: None)).run()


class _Tokeniser:
    """One shard on its way to disk."""

    def __init__(self, job: Job, shard: Shard, count: Count) -> None:
        self.job, self.shard, self.count = job, shard, count
        self.config = job.config
        self.source = job.config.sources[shard.source]
        self.kind = kind_of(self.source)
        self.tokenizer = _tokenizer(job.tokenizer_folder, self.config.add_bos)
        self.intake = Intake(
            self.source.name, self.config.max_rejected_fraction, self.config.max_document_characters
        )
        patterns = tuple(self.config.decontaminate) if self.kind.is_natural else ()
        self.avoided = evaluation_texts(patterns) if patterns else None
        self.contaminated: list[dict[str, Any]] = []
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.texts: list[bytes] = []
        self.text_rows: list[int] = []
        self.text_bytes, self.read_tokens, self.position = 0, 0, 0
        self.wanted_text_bytes = (
            TEXT_BYTES_PER_TOKEN * self.config.num_held_out_tokens if self.kind.is_natural else 0
        )

    def run(self) -> ShardRecord:
        path = self.shard.path(self.job.folder, ".bin")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with storage_errors(path), temporary.open("wb") as file:
            for batch in self._batches():
                self._write(batch, file)
            self._end_intake()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        table = np.array(self.rows, dtype=TABLE)
        write_whole(self._path(".npy"), [_npy(table)])
        write_whole(self._path(".texts.jsonl"), self.texts)
        write_whole(self._path(".contaminated.jsonl"), to_lines(self.contaminated))
        record = ShardRecord(
            identity=self.job.identity,
            seen=self.intake.seen,
            rejected=dict(sorted(self.intake.rejected.items())),
            num_lines=dict(self.intake.num_lines),
            documents=len(self.rows),
            contaminated=len(self.contaminated),
            read_tokens=self.read_tokens,
            written_tokens=self.position,
            text_rows=self.text_rows,
            text_bytes=self.text_bytes,
            files={suffix: _entry(self._path(suffix)) for suffix in SUFFIXES},
        )
        write_json(self._path(".json"), record.to_json())
        return record

    def _batches(self) -> Iterator[list[Document]]:
        """Yield the documents of the shard, a bounded amount of text at a time."""
        batch: list[Document] = []
        num_characters, rejected = 0, 0
        for document in self.kind.read(self.config, self.source, self.shard.parts, self.intake):
            if not self._is_wanted(document):
                continue
            batch.append(document)
            num_characters += len(document.text)
            if len(batch) >= BATCH_DOCUMENTS or num_characters >= BATCH_CHARACTERS:
                yield batch
                bad = self.intake.rejected.total()
                self.count(0, 0, 0, bad - rejected)
                batch, num_characters, rejected = [], 0, bad
        yield batch
        self.count(0, 0, 0, self.intake.rejected.total() - rejected)

    def _write(self, batch: list[Document], file: BinaryIO) -> None:
        ids_of = self.tokenizer.encode([document.text for document in batch])
        num_bytes, before = 0, self.read_tokens
        for document, ids in zip(batch, ids_of, strict=True):
            raw = document.text.encode()
            num_bytes += len(raw)
            split, draw = int(document.id[:16], 16), int(document.id[16:32], 16)
            self.read_tokens += len(ids)
            if not self.kind.is_natural:
                ids = ids[: self.source.length]
            text = int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")
            if self._is_held_out(document):
                self._keep_text(document)
            self.rows.append((split, draw, text, self.position, len(ids)))
            self.position += len(ids)
            file.write(ids.tobytes())
        self.count(num_bytes, len(batch), self.read_tokens - before, 0)

    def _is_wanted(self, document: Document) -> bool:
        if self.shard.held_out_only and not self._is_held_out(document):
            return False
        run = self.avoided.find(document.text) if self.avoided else None
        if run:
            place = {"id": document.id, "path": document.path, "offset": document.offset}
            self.contaminated.append({**place, "source": self.source.name, "words": run})
        return run is None

    def _is_held_out(self, document: Document) -> bool:
        return is_held_out(document.id, self.config.validation_fraction)

    def _keep_text(self, document: Document) -> None:
        """Keep a held-out text whole, as long as one shard alone does not give enough of them."""
        few = len(self.texts) < MIN_HELD_OUT_DOCUMENTS
        if self.kind.is_natural and (few or self.text_bytes < self.wanted_text_bytes):
            row = {"id": document.id, "source": self.source.name, "path": document.path}
            line = json.dumps({**row, "text": document.text}, sort_keys=True).encode() + b"\n"
            self.texts.append(line)
            self.text_rows.append(len(self.rows))
            self.text_bytes += len(line)

    def _end_intake(self) -> None:
        evidence = self._path(".quarantine.jsonl")
        write_whole(evidence, to_lines(self.intake.quarantine))
        self.intake.check(self.shard.label, str(evidence))

    def _path(self, suffix: str) -> Path:
        return self.shard.path(self.job.folder, suffix)


SUFFIXES = (".bin", ".npy", ".texts.jsonl", ".quarantine.jsonl", ".contaminated.jsonl")


def load_tokenizer(job: Job) -> TextTokenizer:
    """Return the job's tokenizer; read once a process."""
    return _tokenizer(job.tokenizer_folder, job.config.add_bos)


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: str, add_bos: bool) -> TextTokenizer:
    return TextTokenizer(Path(folder), add_bos=add_bos)


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _npy(table: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    return buffer.getvalue()
