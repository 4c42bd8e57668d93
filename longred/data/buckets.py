"""Prepares a data folder: tokenises the sources, fills the buckets and writes the folder."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from longred.config import DataConfig
from longred.data.advice import refuse_no_held_out, refuse_shortages
from longred.data.cutting import count_cut, cut_text
from longred.data.estimate import refuse_hopeless
from longred.data.executors import MapGroups, run_shards
from longred.data.finding import describe_ignored
from longred.data.layout import DTYPES
from longred.data.limit import Watch
from longred.data.quotas import source_quotas
from longred.data.reading import Reading
from longred.data.shards import Part, Shard, read_record
from longred.data.sources import check_sources, fingerprints, ignored_files
from longred.data.tokenise import Counts, Job, finished
from longred.data.tokens import TextTokenizer
from longred.data.writing import write_folder
from longred.errors import PreflightError
from longred.progress import Progress, duration
from longred.store.artifacts import canonical_digest, storage_errors

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
    """Write a data folder; the package docstring describes its format.

    The same text, settings and tokenizer give the same bytes with any executor and after any
    interruption. Finished shards are kept in `work`; the next call tokenises only the missing ones.

    Args:
        config: the recipe's data section, with windows and seed filled in.
        tokenizer_folder: Hugging Face folder of the model.
        folder: empty folder to fill.
        work: folder for finished shards.
        on_progress: called with tokens done, tokens expected and a short text.
        map_groups: see `executors.run_shards`.

    Raises:
        ConfigError: a bucket cannot be filled (if a sample already shows it, before tokenising), no
            held-out document fills a short block, a source is wrong, or too many rows are bad.
        PreflightError: a source or the tokenizer cannot be read, or the disk is too small.
        MismatchError: a finished shard in `work` is damaged.
        StorageError: the disk is full.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    quotas = source_quotas(config)
    check_sources(config)
    for source in config.sources:
        if ignored := ignored_files(source):
            logger.warning("%s: not read: %s", source.name, describe_ignored(ignored))
    hashes = fingerprints(config)
    identity = canonical_digest([config.digest_values(), tokenizer.index_entry(), hashes])
    job = Job(config, str(tokenizer_folder), str(work), identity)
    readings = [
        Reading(job, number, quotas[source.name]) for number, source in enumerate(config.sources)
    ]
    runner = _Runner(job, on_progress, map_groups)
    first = [shard for reading in readings for shard in reading.first_shards()]
    if not any(read_record(shard, job.folder, identity) for shard in first):
        refuse_hopeless(config, tokenizer)
    _check_disk(first, readings, DTYPES[tokenizer.dtype].itemsize, work)
    runner.run(first)
    num_shards = 0
    for number, reading in enumerate(readings):
        reading.finish(runner.run, num_shards, readings[:number])
        num_shards += len(reading.shards)
    refuse_shortages(readings)
    refuse_no_held_out(readings)
    write_folder(job, tokenizer, readings, folder, hashes)


class _Runner:
    """Tokenises shards, stops early if most rows are bad, and reports progress over all calls.

    The expected total is estimated from the tokens per byte of the present call.
    """

    def __init__(
        self, job: Job, on_progress: Progress | None, map_groups: MapGroups | None
    ) -> None:
        self.job, self.on_progress, self.map_groups = job, on_progress, map_groups
        self._finished = Counts()
        self._watch = Watch(job)
        self._parts: list[Part] = []

    def run(self, shards: Sequence[Shard]) -> None:
        """Tokenise the shards that have no record yet."""
        self._watch.expect(shards)
        self._parts += [part for shard in shards for part in shard.parts]
        self._watch.look()
        counts, missing = finished(self.job, shards)
        self._finished += counts
        num_bytes = sum(shard.num_bytes for shard in missing)
        begun, latest = time.monotonic(), Counts()

        def tick(now: Counts) -> None:
            nonlocal latest
            latest = now
            self._watch.look()
            self._report(now, num_bytes, begun)

        run_shards(self.job, missing, tick, self.map_groups)
        self._report(latest, latest.num_bytes, begun)
        self._finished += latest

    def _report(self, now: Counts, num_bytes: int, begun: float) -> None:
        """Report the present call's counts, out of `num_bytes` of text."""
        if self.on_progress is None or not now.num_bytes:
            return
        seconds = max(1e-3, time.monotonic() - begun)
        rest = max(0.0, num_bytes / now.num_bytes - 1)
        total = self._finished + now
        num_cut = count_cut(self._parts, self.job.config.piece_bytes())
        cut = f" ({cut_text(*num_cut)})" if num_cut[0] else ""
        self.on_progress(
            total.tokens,
            total.tokens + int(now.tokens * rest),
            f"tokens, {total.documents:,} documents{cut}, {now.tokens / seconds / 1e6:.2f} M "
            f"tokens/s, {duration(seconds * rest)} left, {total.rejected:,} rejected",
        )


def _check_disk(
    shards: Sequence[Shard], readings: Sequence[Reading], itemsize: int, work: Path
) -> None:
    """Refuse a disk that cannot hold the blocks together with the shards they are copied from."""
    tokens = sum(q.needed * q.block_length for reading in readings for q in reading.quotas)
    read = max(tokens, sum(shard.num_bytes for shard in shards) // 4)
    needed = (tokens + read) * itemsize
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise PreflightError(
            f"{work}: {needed / 1e9:.1f} GB are needed for {tokens:,} tokens, {free / 1e9:.1f} GB "
            "are free; free some space or change store.path"
        )
