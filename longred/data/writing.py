"""Writes a data folder: copies the tokens of every bucket, then the index and the evidence."""

import hashlib
import itertools
import logging
import operator
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.cutting import count_cut, cut_text
from longred.data.filling import SEGMENT
from longred.data.finding import SHOWN_NAMES, count_ignored
from longred.data.layout import DTYPES, FOLDERS, FORMAT_VERSION, SPLITS
from longred.data.limit import quarantined
from longred.data.quotas import block_lengths
from longred.data.reading import HISTOGRAM_EDGES, Reading
from longred.data.shards import read_rows, to_lines, write_atomically
from longred.data.sources import ignored_files
from longred.data.tokenise import Job
from longred.data.tokens import TextTokenizer
from longred.method.methods import BUCKETS
from longred.store.artifacts import storage_errors, write_json
from longred.store.journal import Journal

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**25
# Fields of a shard's record that `shards.jsonl` does without.
NOT_AUDITED = (
    "identity",
    "text_rows",
    "text_bytes",
    "files",
    "first_rejected",
    "fields_instead",
)


def write_folder(
    job: Job,
    tokenizer: TextTokenizer,
    readings: Sequence[Reading],
    folder: Path,
    hashes: Mapping[str, str],
) -> None:
    """Write everything that a data folder holds.

    Args:
        job: settings, tokenizer and work folder.
        tokenizer: the job's tokenizer.
        readings: the sources, with all shards that they need.
        folder: empty folder to fill.
        hashes: `sources.fingerprints`.

    Raises:
        StorageError: the disk is full.
    """
    _keep_mixture(readings)
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.index_entry(),
        "add_bos": tokenizer.starts_with_bos,
    }
    for split in SPLITS:
        (folder / FOLDERS[split]).mkdir(parents=True, exist_ok=True)
        index[split] = {
            bucket: _write_split_bucket(job, tokenizer.dtype, readings, folder, split, bucket)
            for bucket in BUCKETS
        }
    texts = [reading.texts() for reading in readings]
    index["sources"] = {
        reading.source.name: _source_entry(reading, len(found), hashes)
        for reading, found in zip(readings, texts, strict=True)
    }
    index["tokens"] = _conserved(index["sources"], job.config)
    held_out = sorted(itertools.chain(*texts), key=lambda text: str(text["id"]))
    contaminated = (
        row
        for reading in readings
        for shard in reading.shards
        for row in read_rows(shard, job.folder, ".contaminated.jsonl")
    )
    write_atomically(folder / "held_out" / "documents.jsonl", to_lines(held_out))
    rejected = itertools.chain.from_iterable(
        quarantined(reading.shards, reading.records, job.folder) for reading in readings
    )
    write_atomically(folder / "quarantine.jsonl", to_lines(rejected))
    write_atomically(folder / "contaminated.jsonl", to_lines(contaminated))
    write_atomically(folder / "shards.jsonl", to_lines(_shard_entries(readings)))
    shutil.copyfile(Path(job.tokenizer_folder) / "tokenizer.json", folder / "tokenizer.json")
    _write_metrics(folder / "metrics.jsonl", index)
    write_json(folder / "index.json", index)


def _keep_mixture(readings: Sequence[Reading]) -> None:
    """Shorten held-out buckets that could not be filled, so that all sources keep their shares."""
    for bucket in BUCKETS:
        key = ("held_out", bucket)
        found = [
            (reading.selection, quota)
            for reading in readings
            for quota in reading.quotas
            if (quota.split, quota.bucket) == key and quota.needed
        ]
        filled = [selection.blocks[key] / quota.needed for selection, quota in found]
        fraction = min(filter(None, filled), default=0.0)
        wanted = written = 0
        for selection, quota in found:
            before = selection.blocks[key]
            kept = min(before, int(quota.needed * fraction + 0.5))
            segments = selection.segments[key]
            selection.segments[key] = segments[segments["block"] < kept]
            selection.blocks[key] = kept
            selection.dropped["mixture"] += (before - kept) * quota.block_length
            wanted, written = wanted + quota.needed, written + kept
        if written < wanted:
            logger.info("held-out %s bucket: %d of %d blocks", bucket, written, wanted)


def _write_split_bucket(
    job: Job, dtype: str, readings: Sequence[Reading], folder: Path, split: str, bucket: str
) -> dict[str, Any]:
    """Write one bucket of one split and return its entry in the index."""
    selected = (reading.selection.segments.get((split, bucket)) for reading in readings)
    name = f"{FOLDERS[split]}/{bucket}"
    entry: dict[str, Any] = {
        "block_length": block_lengths(job.config)[bucket],
        "dtype": dtype,
        "file": f"{name}.bin",
    }
    if bucket == "long":
        entry["ends"] = f"{name}.ends.npy"
    entry["num_blocks"] = write_bucket(
        [segments for segments in selected if segments is not None],
        [shard.path(job.folder, ".bin") for reading in readings for shard in reading.shards],
        folder / entry["file"],
        block_length=entry["block_length"],
        dtype=dtype,
        seed=job.config.seed,
        ends_path=folder / entry["ends"] if bucket == "long" else None,
    )
    return entry


def write_bucket(
    pieces: Sequence[npt.NDArray[Any]],
    paths: Sequence[Path],
    path: Path,
    *,
    block_length: int,
    dtype: str,
    seed: int,
    ends_path: Path | None = None,
) -> int:
    """Copy a bucket's tokens from the shards' files, with its blocks in a shuffled order.

    The order makes every range of the file a fair sample of its sources. Tokens are read by
    position and not memory-mapped, so that memory stays small.

    Args:
        pieces: segments of each source, of dtype SEGMENT, blocks counted from 0 in each.
        paths: token file of each shard, as numbered in the segments.
        path: the file to write.
        block_length: tokens of a block.
        dtype: `uint16` or `uint32`.
        seed: seed of the order.
        ends_path: file for the positions at which documents end; default: none.

    Returns:
        The number of blocks written.

    Raises:
        StorageError: the disk is full.
    """
    segments, num_blocks = _shuffled(pieces, f"{seed}/{path.name}")
    itemsize = DTYPES[dtype].itemsize
    block_bytes = block_length * itemsize
    rows = max(1, CHUNK_BYTES // block_bytes)
    firsts = np.searchsorted(segments["block"], np.arange(0, num_blocks + rows, rows))
    buffer = memoryview(bytearray(rows * block_bytes))
    with storage_errors(path), path.open("wb") as file:
        for number, (first, last) in enumerate(itertools.pairwise(firsts)):
            part = segments[first:last]
            start = (part["block"] - np.uint32(number * rows)).astype(np.int64) * block_length
            _read(part, (start + part["at"]) * itemsize, itemsize, paths, buffer)
            filled = min(rows, num_blocks - number * rows) * block_bytes
            file.write(buffer[:filled])
        file.flush()
        os.fsync(file.fileno())
        if ends_path:
            ends = segments["block"].astype(np.uint64) * np.uint64(block_length)
            ends += (segments["at"] + segments["size"]).astype(np.uint64)
            np.save(ends_path, ends, allow_pickle=False)
    return num_blocks


def _shuffled(pieces: Sequence[npt.NDArray[Any]], key: str) -> tuple[npt.NDArray[Any], int]:
    """Renumber the blocks of all sources in a random order; return sorted segments and a count."""
    counts = [int(part["block"][-1]) + 1 if len(part) else 0 for part in pieces]
    starts = np.cumsum([0, *counts])
    total = int(starts[-1])
    seed = int.from_bytes(hashlib.sha256(f"layout/{key}".encode()).digest()[:8], "little")
    # Raw output, because numpy guarantees only that across versions.
    new_number = np.argsort(np.random.Philox(seed).random_raw(total), kind="stable")
    joined = np.concatenate([np.zeros(0, dtype=SEGMENT), *pieces])
    first = np.repeat(starts[:-1], [len(part) for part in pieces])
    joined["block"] = new_number[joined["block"] + first]
    return joined[np.lexsort((joined["at"], joined["block"]))], total


def _read(
    segments: npt.NDArray[Any],
    targets: npt.NDArray[np.int64],
    itemsize: int,
    paths: Sequence[Path],
    buffer: memoryview,
) -> None:
    """Read segments to their byte positions in a buffer, opening each shard once."""
    order = np.lexsort((segments["start"], segments["shard"]))
    shards = segments["shard"][order].tolist()
    offsets = (segments["start"][order] * np.uint64(itemsize)).tolist()
    sizes = (segments["size"][order].astype(np.int64) * itemsize).tolist()
    positions = targets[order].tolist()
    rows = zip(shards, offsets, sizes, positions, strict=True)
    for shard, group in itertools.groupby(rows, key=operator.itemgetter(0)):
        with paths[shard].open("rb", buffering=0) as file:
            for _, offset, size, position in group:
                read = os.preadv(file.fileno(), [buffer[position : position + size]], offset)
                if read != size:
                    raise RuntimeError(f"{paths[shard]}: {read} of {size} bytes at {offset}")


def _source_entry(reading: Reading, num_texts: int, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return a source's entry in the index."""
    source, records = reading.source, reading.records
    blocks: dict[str, dict[str, int]] = {split: dict.fromkeys(BUCKETS, 0) for split in SPLITS}
    for (split, bucket), count in reading.selection.blocks.items():
        blocks[split][bucket] = count
    lengths = block_lengths(reading.job.config)
    rejected: Counter[str] = Counter()
    dropped = reading.selection.dropped.copy()
    for record in records:
        rejected.update(record.rejected)
        dropped["beyond_length"] += record.read_tokens - record.written_tokens
    return {
        "kind": source.kind,
        "path": source.path,
        "revision": source.revision,
        "sha256": hashes[source.name],
        "rows": sum(record.seen for record in records),
        "documents": reading.filler.num_documents["train"],
        "held_out_documents": reading.filler.num_documents["held_out"],
        "held_out_texts": num_texts,
        "duplicates": reading.filler.num_duplicates,
        "contaminated": sum(record.contaminated for record in records),
        "tokens": sum(blocks["train"][bucket] * lengths[bucket] for bucket in BUCKETS),
        "read_tokens": sum(record.read_tokens for record in records),
        "dropped_tokens": {reason: n for reason, n in sorted(dropped.items()) if n},
        "blocks": blocks,
        "rejected": dict(sorted(rejected.items())),
        "lengths": {"edges": HISTOGRAM_EDGES, "documents": reading.lengths.tolist()},
        "shards": len(reading.shards),
        **_files_entry(reading),
    }


def _files_entry(reading: Reading) -> dict[str, Any]:
    """Return which files were cut and which were not read; empty if there are none."""
    entry: dict[str, Any] = {}
    piece = reading.job.config.piece_bytes()
    cut = count_cut((part for shard in reading.shards for part in shard.parts), piece)
    if cut[0]:
        logger.info("%s: %s", reading.source.name, cut_text(*cut))
        entry |= {"cut_files": cut[0], "cut_documents": cut[1], "cut_bytes": piece}
    ignored = ignored_files(reading.source)
    if ignored:
        entry["ignored_files"] = count_ignored(ignored)
        entry["ignored_names"] = sorted(ignored)[:SHOWN_NAMES]
    return entry


def _conserved(sources: Mapping[str, Any], config: DataConfig) -> dict[str, int]:
    """Return the tokens read, written and dropped; a difference between them is a bug.

    They are counted independently: by the tokenisers, in the blocks, and where tokens are dropped.
    """
    lengths = block_lengths(config)
    total: Counter[str] = Counter()
    for name, entry in sources.items():
        read, dropped = entry["read_tokens"], sum(entry["dropped_tokens"].values())
        written = sum(
            count * lengths[bucket]
            for blocks in entry["blocks"].values()
            for bucket, count in blocks.items()
        )
        if read != written + dropped:
            raise RuntimeError(
                f"{name}: {read} tokens were read, but {written} written and {dropped} dropped"
            )
        total.update(read=read, written=written, dropped=dropped)
    return dict(total)


def _shard_entries(readings: Sequence[Reading]) -> Iterator[dict[str, Any]]:
    """Yield what each shard read and produced, for an audit."""
    for reading in readings:
        for shard, record in zip(reading.shards, reading.records, strict=True):
            counts = {key: n for key, n in asdict(record).items() if key not in NOT_AUDITED}
            yield {
                "source": shard.name,
                "number": shard.number,
                "held_out_only": shard.held_out_only,
                "parts": [asdict(part) for part in shard.parts],
                "sha256": record.files[".bin"]["sha256"],
                **counts,
            }


def _write_metrics(path: Path, index: Mapping[str, Any]) -> None:
    sources = index["sources"].values()
    metrics = {f"data/{key}_tokens": n for key, n in index["tokens"].items()}
    metrics["data/rejected_rows"] = sum(sum(source["rejected"].values()) for source in sources)
    for key in ("duplicates", "contaminated"):
        metrics[f"data/{key}_documents"] = sum(source[key] for source in sources)
    for split in SPLITS:
        for bucket, entry in index[split].items():
            metrics[f"data/{split}/{bucket}_blocks"] = entry["num_blocks"]
    journal = Journal(path)
    journal.append(metrics, step=0)
    journal.close()
