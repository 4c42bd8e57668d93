"""Tokenises many shards: in local processes or through datatrove.

Every executor calls `tokenise_shard`, and a shard is finished when its record exists.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from longred.data.shards import Shard
from longred.data.tokenise import Counts, Job, Tick, tokenise_shard, wait_for
from longred.errors import LostProcessError

BYTES_PER_GROUP = 2**26
# With less text per process, starting one takes longer than it saves.
BYTES_PER_WORKER = 2**24


Group = list[Shard]
MapGroups = Callable[[Callable[[Group], None], list[Group], Callable[[], None]], None]
"""Calls the function on every group in parallel, and its last argument periodically meanwhile."""


class _Cancelled(Exception):
    """The preparation has ended, so this shard is abandoned."""


def run_shards(
    job: Job, shards: Sequence[Shard], tick: Tick, map_groups: MapGroups | None = None
) -> None:
    """Tokenise shards with the executor of `data.executor`; afterwards each has its record.

    Args:
        job: what they have in common.
        shards: those without a record.
        tick: called periodically with the progress.
        map_groups: runs groups of shards for the executor `pool`; default: one thread per group.

    Raises:
        LongredError: as `tokenise_shard` and `tick`; finished shards are kept.
    """
    if not shards:
        return
    if job.config.executor.kind == "pool":
        _run_in_pool(job, shards, tick, map_groups or map_in_threads)
    else:
        from longred.data.cluster import run_in_datatrove

        run_in_datatrove(job, shards, tick)


def _run_in_pool(job: Job, shards: Sequence[Shard], tick: Tick, map_groups: MapGroups) -> None:
    """Tokenise shards in processes, or in one thread; after an error the pool stops at once."""
    total = sum(shard.num_bytes for shard in shards)
    useful = min(len(os.sched_getaffinity(0)), max(1, total // BYTES_PER_WORKER))
    workers = min(job.config.executor.num_workers or useful, len(shards))
    context = multiprocessing.get_context("spawn")
    counts, stop = context.Array("q", 4), context.Event()
    pool: Executor
    if workers == 1:
        pool = ThreadPoolExecutor(1, initializer=_enter, initargs=(counts, stop, False))
    else:
        pool = ProcessPoolExecutor(workers, context, _enter, (counts, stop, True))

    def run_group(group: Group) -> None:
        futures = [pool.submit(_tokenise, job, shard) for shard in group]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()

    groups = grouped(shards, job.config.executor.max_tasks)
    try:
        map_groups(run_group, groups, lambda: tick(Counts(*counts[:])))
    except BrokenProcessPool as error:
        raise LostProcessError(
            "data: a tokenising process was lost (killed, or out of memory; see "
            "data.executor.num_workers); finished shards are kept, run the same command again"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def grouped(shards: Sequence[Shard], max_groups: int) -> list[Group]:
    """Divide shards into runs of equal length; small corpora give few groups."""
    total = sum(shard.num_bytes for shard in shards)
    count = min(max_groups, len(shards), max(1, total // BYTES_PER_GROUP))
    bounds = [len(shards) * number // count for number in range(count + 1)]
    return [list(shards[a:b]) for a, b in itertools.pairwise(bounds)]


def map_in_threads(
    run: Callable[[Group], None], groups: list[Group], tick: Callable[[], None]
) -> None:
    """Call a function on every group, each in a thread that waits for the pool."""
    threads = ThreadPoolExecutor(len(groups))
    try:
        wait_for([threads.submit(run, group) for group in groups], tick)
    finally:
        # After an error the threads still wait for the pool, which the caller stops next.
        threads.shutdown(wait=False, cancel_futures=True)


_counts: Any = None
_stop: Any = None


def _enter(counts: Any, stop: Any, is_process: bool) -> None:
    """Initialise a worker with the shared counters and the stop signal."""
    global _counts, _stop
    _counts, _stop = counts, stop
    if is_process:
        # The parent handles interrupts and stops the workers; processes are the parallelism.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["RAYON_NUM_THREADS"] = "1"
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tokenise(job: Job, shard: Shard) -> None:
    tokenise_shard(job, shard, _count)


def _count(*increments: int) -> None:
    if _stop.is_set():
        raise _Cancelled
    with _counts.get_lock():
        for index, increment in enumerate(increments):
            _counts[index] += increment
