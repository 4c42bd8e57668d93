"""Prepares a data folder: tokenises the sources, fills the buckets, writes what goes with them."""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longred.config import DataConfig
from longred.data.copying import write_bucket
from longred.data.counts import Counts
from longred.data.estimate import refuse_hopeless
from longred.data.executors import MapGroups, run_shards
from longred.data.layout import DTYPES, FOLDERS, FORMAT_VERSION, SPLITS
from longred.data.quotas import block_lengths, shortage, source_quotas
from longred.data.reading import HISTOGRAM_EDGES, Reading
from longred.data.shards import Shard, read_record, read_rows, to_lines, write_whole
from longred.data.sources import check_sources, fingerprints
from longred.data.tokenise import Job, load_tokenizer
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError, PreflightError
from longred.method.methods import BUCKETS
from longred.progress import Progress
from longred.store.artifacts import canonical_digest, storage_errors, write_json
from longred.store.journal import Journal

logger = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    tokenizer_folder: Path,
    folder: Path,
    work: Path,
    *,
    on_progress: Progress | None = None,
    map_groups: MapGroups | None = None,
) -> None:
    """Write a data folder; the format is in the package's docstring.

    The same text, settings and tokenizer give the same bytes, whoever tokenises and also after an
    interruption: `work` keeps finished shards, and the next call does only what is missing.

    Args:
        config: the recipe's data section, with windows and seed filled in.
        tokenizer_folder: Hugging Face folder of the model.
        folder: empty folder to fill.
        work: folder for progress.
        on_progress: called with tokens done, tokens expected and a few words.
        map_groups: see `executors.run_shards`.

    Raises:
        ConfigError: a bucket cannot be filled, which a sample says where it is plain before
            anything is tokenised; a source is wrong, or too many rows are bad.
        PreflightError: a source or the tokenizer cannot be read, or the disk is too small.
        MismatchError: a finished shard in `work` has been damaged.
        StorageError: the disk is full.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    quotas = source_quotas(config)
    check_sources(config)
    hashes = fingerprints(config)
    identity = canonical_digest([config.digest_values(), tokenizer.index_entry(), hashes])
    job = Job(config, str(tokenizer_folder), str(work), identity)
    readings = [
        Reading(job, number, quotas[source.name]) for number, source in enumerate(config.sources)
    ]
    progress = _Progress(job, on_progress)

    def run(shards: Sequence[Shard]) -> None:
        missing = progress.begin(shards)
        run_shards(job, missing, progress.tick, map_groups)
        progress.end()

    first = [shard for reading in readings for shard in reading.first_shards()]
    if not any(read_record(shard, job.folder, identity) for shard in first):
        refuse_hopeless(config, tokenizer)
    _check_disk(first, readings, tokenizer, work)
    run(first)
    count = 0
    for number, reading in enumerate(readings):
        reading.finish(run, count, readings[:number])
        count += len(reading.shards)
    _refuse_shortages(readings)
    _write_folder(job, readings, folder, hashes)


class _Progress:
    """Says how far tokenising is: tokens so far of as many as the text should have."""

    def __init__(self, job: Job, on_progress: Progress | None) -> None:
        self.job, self.on_progress = job, on_progress
        self._kept, self._now = Counts(), Counts()
        self._begun = time.monotonic()
        self._todo_bytes = 0

    def begin(self, shards: Sequence[Shard]) -> list[Shard]:
        """Count what is finished already and return the other shards."""
        missing = []
        for shard in shards:
            record = read_record(shard, self.job.folder, self.job.identity)
            if record is None:
                missing.append(shard)
                continue
            rejected = sum(record.rejected.values())
            found = Counts(shard.num_bytes, record.documents, record.read_tokens, rejected)
            self._kept = _added(self._kept, found)
        self._todo_bytes = sum(shard.num_bytes for shard in missing)
        self._begun, self._now = time.monotonic(), Counts()
        return missing

    def tick(self, now: Counts) -> None:
        """Show the present state; `now` counts since `begin`."""
        self._now = now
        if self.on_progress is None or not now.num_bytes:
            return
        seconds = max(1e-3, time.monotonic() - self._begun)
        rest = max(0.0, self._todo_bytes / now.num_bytes - 1)
        whole = _added(self._kept, now)
        rate, left = now.tokens / seconds, seconds * rest
        self.on_progress(
            whole.tokens,
            whole.tokens + int(now.tokens * rest),
            f"tokens, {whole.documents:,} documents, {rate / 1e6:.2f} M tokens/s, "
            f"{_duration(left)} left, {whole.rejected:,} rejected",
        )

    def end(self) -> None:
        """Keep what has been counted."""
        self._todo_bytes = self._now.num_bytes
        self.tick(self._now)
        self._kept = _added(self._kept, self._now)
        self._now = Counts()


def _added(a: Counts, b: Counts) -> Counts:
    return Counts(
        a.num_bytes + b.num_bytes,
        a.documents + b.documents,
        a.tokens + b.tokens,
        a.rejected + b.rejected,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _check_disk(
    shards: Sequence[Shard], readings: Sequence[Reading], tokenizer: TextTokenizer, work: Path
) -> None:
    """Refuse a disk that cannot hold the blocks and, until they are written, the shards."""
    tokens = sum(q.needed * q.block_length for reading in readings for q in reading.quotas)
    read = max(tokens, sum(shard.num_bytes for shard in shards) // 4)
    needed = (tokens + read) * DTYPES[tokenizer.dtype].itemsize
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise PreflightError(
            f"{work}: {needed / 1e9:.1f} GB are needed for {tokens:,} tokens, {free / 1e9:.1f} GB "
            "are free; free some space and set store.path"
        )


def _refuse_shortages(readings: Sequence[Reading]) -> None:
    missing = [
        shortage(reading.source.name, quota, reading.settled.blocks[quota.split, quota.bucket])
        for reading in readings
        for quota in reading.shortages()
    ]
    if missing:
        raise ConfigError(
            "data.num_tokens: not enough text: " + "; ".join(missing) + ". Lower "
            "data.num_tokens, change data.ratio or the shares in data.sources, or add text"
        )


def _write_folder(
    job: Job, readings: Sequence[Reading], folder: Path, hashes: Mapping[str, str]
) -> None:
    config = job.config
    tokenizer = load_tokenizer(job)
    _keep_mixture(readings)
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.index_entry(),
        "add_bos": config.add_bos,
    }
    paths = [shard.path(job.folder, ".bin") for reading in readings for shard in reading.shards]
    for split in SPLITS:
        (folder / FOLDERS[split]).mkdir(parents=True, exist_ok=True)
        index[split] = {
            bucket: _write_bucket(config, readings, tokenizer.dtype, paths, folder, split, bucket)
            for bucket in BUCKETS
        }
    if not index["held_out"]["short"]["num_blocks"]:
        raise ConfigError(
            "data.validation_fraction: no held-out document is long enough for a short block "
            f"({config.short_length} tokens); raise it or add text"
        )
    texts = [text for reading in readings for text in reading.texts()]
    index["sources"] = {
        reading.source.name: _source_entry(reading, texts, hashes) for reading in readings
    }
    index["tokens"] = _conserved(readings)
    write_whole(
        folder / "held_out" / "documents.jsonl",
        to_lines(sorted(texts, key=lambda text: str(text["id"]))),
    )
    write_whole(folder / "quarantine.jsonl", to_lines(_quarantine(readings)))
    write_whole(
        folder / "contaminated.jsonl",
        to_lines(
            row
            for reading in readings
            for shard in reading.shards
            for row in read_rows(shard, job.folder, ".contaminated.jsonl")
        ),
    )
    write_whole(folder / "shards.jsonl", to_lines(_shard_entries(readings)))
    shutil.copyfile(Path(job.tokenizer_folder) / "tokenizer.json", folder / "tokenizer.json")
    _write_metrics(folder / "metrics.jsonl", index)
    write_json(folder / "index.json", index)


def _keep_mixture(readings: Sequence[Reading]) -> None:
    """Cut held-out buckets that could not be filled, so that the sources' shares stay as asked."""
    for bucket in BUCKETS:
        key = ("held_out", bucket)
        found = [
            (reading, quota)
            for reading in readings
            for quota in reading.quotas
            if (quota.split, quota.bucket) == key and quota.needed
        ]
        blocks = [reading.settled.blocks[key] for reading, _ in found]
        filled = [n / quota.needed for n, (_, quota) in zip(blocks, found, strict=True) if n]
        for n, (reading, quota) in zip(blocks, found, strict=True):
            kept = min(n, int(quota.needed * min(filled, default=0.0) + 0.5))
            segments = reading.settled.segments[key]
            reading.settled.segments[key] = segments[segments["block"] < kept]
            reading.settled.blocks[key] = kept
            reading.settled.dropped["mixture"] += (n - kept) * quota.block_length
        wanted = sum(quota.needed for _, quota in found)
        written = sum(reading.settled.blocks[key] for reading, _ in found)
        if written < wanted:
            logger.info("held-out %s bucket: %d of %d blocks", bucket, written, wanted)


def _write_bucket(
    config: DataConfig,
    readings: Sequence[Reading],
    dtype: str,
    paths: Sequence[Path],
    folder: Path,
    split: str,
    bucket: str,
) -> dict[str, Any]:
    """Write one bucket's file and return its entry in the index."""
    settled = (reading.settled.segments.get((split, bucket)) for reading in readings)
    name = f"{FOLDERS[split]}/{bucket}"
    entry: dict[str, Any] = {
        "block_length": block_lengths(config)[bucket],
        "dtype": dtype,
        "file": f"{name}.bin",
        "num_blocks": 0,
    }
    if bucket == "long":
        entry["ends"] = f"{name}.ends.npy"
    entry["num_blocks"] = write_bucket(
        [segments for segments in settled if segments is not None],
        paths,
        folder / entry["file"],
        block_length=entry["block_length"],
        dtype=dtype,
        seed=config.seed,
        ends_path=folder / entry["ends"] if bucket == "long" else None,
    )
    return entry


def _source_entry(
    reading: Reading, texts: Sequence[Mapping[str, Any]], hashes: Mapping[str, str]
) -> dict[str, Any]:
    source, records = reading.source, reading.records
    blocks: dict[str, dict[str, int]] = {split: dict.fromkeys(BUCKETS, 0) for split in SPLITS}
    for (split, bucket), count in reading.settled.blocks.items():
        blocks[split][bucket] = count
    lengths = block_lengths(reading.job.config)
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    return {
        "kind": source.kind,
        "path": source.path,
        "revision": source.revision,
        "sha256": hashes[source.name],
        "rows": sum(record.seen for record in records),
        "documents": reading.filler.num_documents["train"],
        "held_out_documents": reading.filler.num_documents["held_out"],
        "held_out_texts": sum(text["source"] == source.name for text in texts),
        "duplicates": reading.filler.num_duplicates,
        "contaminated": sum(record.contaminated for record in records),
        "tokens": sum(blocks["train"][bucket] * lengths[bucket] for bucket in BUCKETS),
        "read_tokens": sum(record.read_tokens for record in records),
        "dropped_tokens": {reason: n for reason, n in sorted(_dropped(reading).items()) if n},
        "blocks": blocks,
        "rejected": dict(sorted(rejected.items())),
        "lengths": {"edges": HISTOGRAM_EDGES, "documents": reading.lengths.tolist()},
        "shards": len(reading.shards),
    }


def _dropped(reading: Reading) -> Counter[str]:
    dropped = reading.settled.dropped.copy()
    dropped["beyond_length"] += sum(r.read_tokens - r.written_tokens for r in reading.records)
    return dropped


def _conserved(readings: Sequence[Reading]) -> dict[str, int]:
    """Return tokens read, written and dropped; the first is the sum of the others, or it is a bug.

    Each is counted by itself: by the tokenisers, in the blocks, and where a token was left out.
    """
    lengths = block_lengths(readings[0].job.config)
    tokens = {"read": 0, "written": 0, "dropped": 0}
    for reading in readings:
        read = sum(record.read_tokens for record in reading.records)
        written = sum(n * lengths[bucket] for (_, bucket), n in reading.settled.blocks.items())
        dropped = _dropped(reading).total()
        if read != written + dropped:
            raise RuntimeError(
                f"{reading.source.name}: {read} tokens were read, but {written} written and "
                f"{dropped} dropped"
            )
        tokens["read"] += read
        tokens["written"] += written
        tokens["dropped"] += dropped
    return tokens


def _quarantine(readings: Sequence[Reading]) -> Iterator[dict[str, Any]]:
    """Yield rejected rows; lines of a file that was read in stretches are counted through."""
    for reading in readings:
        lines: Counter[str] = Counter()
        for shard, record in zip(reading.shards, reading.records, strict=True):
            stretches = {part.path for part in shard.parts if part.start}
            for row in read_rows(shard, reading.job.folder, ".quarantine.jsonl"):
                before = lines[row["path"]] if row["path"] in stretches else 0
                yield {**row, "line": row["line"] + before}
            lines.update(record.num_lines)


def _shard_entries(readings: Sequence[Reading]) -> Iterator[dict[str, Any]]:
    """Yield what each shard read and gave: the way from a source to the buckets, for an audit."""
    for reading in readings:
        for shard, record in zip(reading.shards, reading.records, strict=True):
            counts = record.to_json()
            del counts["identity"], counts["text_rows"], counts["text_bytes"], counts["files"]
            yield {
                "source": shard.name,
                "number": shard.number,
                "held_out_only": shard.held_out_only,
                "parts": [asdict(part) for part in shard.parts],
                "sha256": record.files[".bin"]["sha256"],
                **counts,
            }


def _write_metrics(path: Path, index: Mapping[str, Any]) -> None:
    rejected: Counter[str] = Counter()
    for source in index["sources"].values():
        rejected.update(source["rejected"])
    metrics = {f"data/{key}_tokens": float(n) for key, n in index["tokens"].items()}
    metrics["data/rejected_rows"] = float(rejected.total())
    for key in ("duplicates", "contaminated"):
        count = sum(source[key] for source in index["sources"].values())
        metrics[f"data/{key}_documents"] = float(count)
    for split in SPLITS:
        for bucket, entry in index[split].items():
            metrics[f"data/{split}/{bucket}_blocks"] = float(entry["num_blocks"])
    journal = Journal(path)
    journal.append(metrics, step=0)
    journal.close()
