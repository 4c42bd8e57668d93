"""Prepares a data folder: fills the buckets from all sources and writes what belongs to them."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.artifacts import canonical_digest, read_json, storage_errors, write_json
from longred.config import DataConfig
from longred.data.filling import Filler
from longred.data.loader import DTYPES, FORMAT_VERSION
from longred.data.quotas import SPLITS, Quota, block_lengths, shortages, source_quotas
from longred.data.sources import fingerprints, open_sources
from longred.data.spool import SpoolFolder, gather
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError, PreflightError
from longred.methods import BUCKETS
from longred.progress import Progress
from longred.tracking import Journal

logger = logging.getLogger(__name__)

FOLDERS = {"train": "tokens", "held_out": "held_out"}
# Whole held-out texts: eight times the held-out tokens, at about four bytes each.
TEXT_BYTES_PER_TOKEN = 32


def prepare(
    config: DataConfig,
    tokenizer_folder: Path,
    folder: Path,
    work: Path,
    *,
    on_progress: Progress | None = None,
) -> None:
    """Write a data folder; the format is in the package's docstring.

    The same text, settings and tokenizer give the same bytes, also after an interruption: `work`
    keeps what is done, and the next call goes on from the last finished window.

    Args:
        config: the recipe's data section, with windows and seed filled in.
        tokenizer_folder: Hugging Face folder of the model.
        folder: empty folder to fill.
        work: folder for progress.
        on_progress: called with tokens done, tokens wanted and a few words.

    Raises:
        ConfigError: a bucket cannot be filled, a source is wrong, or too many rows are bad.
        PreflightError: a source or the tokenizer cannot be read, or the disk is too small.
        StorageError: the disk is full.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    quotas = source_quotas(config)
    sources = open_sources(config)
    hashes = fingerprints(config)
    _check_disk(quotas, tokenizer, work)
    identity = canonical_digest([config.digest_values(), tokenizer.index_entry(), hashes])
    saved = _saved_progress(work / "progress.json", identity)
    with SpoolFolder(work / "spools", saved["sizes"]) as spools:
        num_natural = max(1, sum(source.is_natural for source in sources))
        fillers = [
            Filler(
                source,
                quotas[source.config.name],
                tokenizer,
                spools,
                validation_fraction=config.validation_fraction,
                held_out_text_bytes=TEXT_BYTES_PER_TOKEN
                * config.num_held_out_tokens
                // num_natural,
            )
            for source in sources
        ]
        _fill(fillers, saved, spools, work, identity, on_progress)
        missing = shortages(quotas)
        if missing:
            raise ConfigError(
                "data.num_tokens: not enough text: " + "; ".join(missing) + ". Lower "
                "data.num_tokens, change data.ratio or the shares in data.sources, or add text"
            )
        _write_folder(config, fillers, tokenizer, spools, folder, hashes)


def _fill(
    fillers: Sequence[Filler],
    saved: Mapping[str, Any],
    spools: SpoolFolder,
    work: Path,
    identity: str,
    on_progress: Progress | None,
) -> None:
    """Run every source that is not finished, saving after each window."""
    total = sum(q.needed * q.block_length for f in fillers for q in f.quotas if q.split == "train")

    def save() -> None:
        states = {filler.source.config.name: filler.state() for filler in fillers}
        progress = {"identity": identity, "sizes": spools.sync(), "sources": states}
        write_json(work / "progress.json", progress)

    def advance() -> None:
        if on_progress:
            train = [q for f in fillers for q in f.quotas if q.split == "train"]
            done = sum(q.written * q.block_length for q in train)
            on_progress(done, total, f"tokens from {filler.source.config.name}")

    with storage_errors(work):
        for filler in fillers:
            if filler.source.config.name in saved["sources"]:
                filler.load_state(saved["sources"][filler.source.config.name])
        for filler in fillers:
            if not filler.finished and any(quota.needed for quota in filler.quotas):
                filler.fill(save, advance)


def _saved_progress(path: Path, identity: str) -> dict[str, Any]:
    """Return the progress of the same preparation, or an empty one."""
    if path.exists():
        saved: dict[str, Any] = read_json(path)
        if saved.get("identity") == identity:
            return saved
    return {"identity": identity, "sizes": {}, "sources": {}}


def _check_disk(
    quotas: Mapping[str, Sequence[Quota]], tokenizer: TextTokenizer, work: Path
) -> None:
    tokens = sum(q.needed * q.block_length for items in quotas.values() for q in items)
    needed = 2 * tokens * DTYPES[tokenizer.dtype].itemsize
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise PreflightError(
            f"{work}: {needed / 1e9:.1f} GB are needed for {tokens:,} tokens, {free / 1e9:.1f} GB "
            "are free; free some space or set store.path"
        )


def _write_folder(
    config: DataConfig,
    fillers: Sequence[Filler],
    tokenizer: TextTokenizer,
    spools: SpoolFolder,
    folder: Path,
    hashes: Mapping[str, str],
) -> None:
    _keep_mixture(fillers)
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.index_entry(),
        "add_bos": config.add_bos,
    }
    for split in SPLITS:
        (folder / FOLDERS[split]).mkdir(parents=True, exist_ok=True)
        index[split] = {
            bucket: _write_bucket(config, fillers, tokenizer.dtype, spools, folder, split, bucket)
            for bucket in BUCKETS
        }
    if not index["held_out"]["short"]["num_blocks"]:
        raise ConfigError(
            "data.validation_fraction: no held-out document is long enough for a short block "
            f"({config.short_length} tokens); raise it or add text"
        )
    index["sources"] = {f.source.config.name: _source_entry(f, hashes) for f in fillers}
    index["tokens"] = {
        "read": sum(filler.num_read for filler in fillers),
        "written": sum(filler.num_written() for filler in fillers),
        "dropped": sum(filler.dropped.total() for filler in fillers),
    }
    if index["tokens"]["read"] != index["tokens"]["written"] + index["tokens"]["dropped"]:
        raise RuntimeError(f"tokens were lost on the way to the buckets: {index['tokens']}")
    _write_lines(folder / "held_out" / "documents.jsonl", _held_out_texts(fillers, spools))
    quarantine = [row for filler in fillers for row in filler.source.intake.quarantine]
    _write_lines(
        folder / "quarantine.jsonl",
        [json.dumps(row, sort_keys=True).encode() + b"\n" for row in quarantine],
    )
    _write_metrics(folder / "metrics.jsonl", index)
    write_json(folder / "index.json", index)


def _keep_mixture(fillers: Sequence[Filler]) -> None:
    """Cut held-out buckets that could not be filled, so that the sources' shares stay as asked."""
    for bucket in BUCKETS:
        found = [
            (filler, quota)
            for filler in fillers
            for quota in filler.quotas
            if quota.split == "held_out" and quota.bucket == bucket and quota.needed
        ]
        filled = [quota.written / quota.needed for _, quota in found if quota.written]
        for filler, quota in found:
            kept = min(quota.written, int(quota.needed * min(filled, default=0.0) + 0.5))
            filler.dropped["mixture"] += (quota.written - kept) * quota.block_length
            quota.written = kept
        if any(quota.written < quota.needed for _, quota in found):
            logger.info(
                "held-out %s bucket: %d of %d blocks",
                bucket,
                sum(quota.written for _, quota in found),
                sum(quota.needed for _, quota in found),
            )


def _write_bucket(
    config: DataConfig,
    fillers: Sequence[Filler],
    dtype: str,
    spools: SpoolFolder,
    folder: Path,
    split: str,
    bucket: str,
) -> dict[str, Any]:
    """Write one bucket's file and return its entry in the index."""
    pieces = [
        (spools, filler.spool_name(quota), quota.written)
        for filler in fillers
        for quota in filler.quotas
        if quota.split == split and quota.bucket == bucket
    ]
    name = f"{FOLDERS[split]}/{bucket}"
    block_length = block_lengths(config)[bucket]
    entry: dict[str, Any] = {
        "block_length": block_length,
        "dtype": dtype,
        "file": f"{name}.bin",
        "num_blocks": 0,
    }
    if bucket == "long":
        entry["ends"] = f"{name}.ends.npy"
    entry["num_blocks"] = gather(
        pieces,
        folder / entry["file"],
        block_length=block_length,
        dtype=dtype,
        seed=config.seed,
        ends_path=folder / entry["ends"] if bucket == "long" else None,
    )
    return entry


def _source_entry(filler: Filler, hashes: Mapping[str, str]) -> dict[str, Any]:
    blocks: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for quota in filler.quotas:
        blocks[quota.split][quota.bucket] = quota.written
    train = [quota for quota in filler.quotas if quota.split == "train"]
    config = filler.source.config
    return {
        "kind": config.kind,
        "path": config.path,
        "revision": config.revision,
        "sha256": hashes[config.name],
        "rows": filler.source.intake.seen,
        "documents": filler.num_documents["train"],
        "held_out_documents": filler.num_documents["held_out"],
        "held_out_texts": filler.num_texts,
        "tokens": sum(quota.written * quota.block_length for quota in train),
        "read_tokens": filler.num_read,
        "dropped_tokens": {reason: n for reason, n in sorted(filler.dropped.items()) if n},
        "blocks": blocks,
        "rejected": dict(sorted(filler.source.intake.rejected.items())),
    }


def _held_out_texts(fillers: Sequence[Filler], spools: SpoolFolder) -> list[bytes]:
    """Return the held-out documents of every source as lines, in the order of their ids."""
    lines = [
        line
        for filler in fillers
        for line in spools.read(filler.texts_name).splitlines(keepends=True)
    ]
    return sorted(lines, key=lambda line: str(json.loads(line)["id"]))


def _write_lines(path: Path, lines: Sequence[bytes]) -> None:
    with storage_errors(path), path.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _write_metrics(path: Path, index: Mapping[str, Any]) -> None:
    rejected: Counter[str] = Counter()
    for source in index["sources"].values():
        rejected.update(source["rejected"])
    metrics = {f"data/{key}_tokens": float(n) for key, n in index["tokens"].items()}
    metrics["data/rejected_rows"] = float(rejected.total())
    for split in SPLITS:
        for bucket, entry in index[split].items():
            metrics[f"data/{split}/{bucket}_blocks"] = float(entry["num_blocks"])
    journal = Journal(path)
    journal.append(metrics, step=0)
    journal.close()
