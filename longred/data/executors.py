"""Runs the tokenising of many shards: in processes of this machine, or through datatrove.

Whoever runs them, a shard is the same function and its record the only proof that it is done.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from longred.data.counts import Counts, Tick, wait_for
from longred.data.shards import Shard
from longred.data.tokenise import Job, tokenise_shard

BYTES_PER_GROUP = 2**26
# Less text than this for each process is done sooner without one.
BYTES_PER_WORKER = 2**24


Group = list[Shard]
MapGroups = Callable[[Callable[[Group], None], list[Group], Callable[[], None]], None]
"""Calls a function on every group, side by side, and meanwhile its last argument now and then."""


class _Cancelled(Exception):
    """The preparation has ended; nobody waits for this shard."""


def run_shards(
    job: Job, shards: Sequence[Shard], tick: Tick, map_groups: MapGroups | None = None
) -> None:
    """Tokenise shards as `data.executor` says; when this returns, each has its record.

    Args:
        job: what they have in common.
        shards: those that have no record yet.
        tick: told how far it is.
        map_groups: how groups of shards are run by the pool; threads that wait for it by default.

    Raises:
        LongredError: as `tokenise_shard`; what is finished stays.
    """
    if not shards:
        return
    if job.config.executor.kind == "pool":
        _run_in_pool(job, shards, tick, map_groups or map_in_threads)
    else:
        from longred.data.cluster import run_in_datatrove

        run_in_datatrove(job, shards, tick)


def _run_in_pool(job: Job, shards: Sequence[Shard], tick: Tick, map_groups: MapGroups) -> None:
    with _pool(job, shards) as (pool, counts):

        def run_group(group: Group) -> None:
            futures = [pool.submit(_tokenise, job, shard) for shard in group]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()

        try:
            map_groups(
                run_group,
                grouped(shards, job.config.executor.max_tasks),
                lambda: tick(Counts(*counts)),
            )
        except BrokenProcessPool as error:
            from longred.errors import LostProcessError

            raise LostProcessError(
                "data: a tokenising process was lost (killed, or out of memory; see "
                "data.executor.num_workers); finished shards are kept, run the same command again"
            ) from error


def grouped(shards: Sequence[Shard], max_groups: int) -> list[Group]:
    """Return shards in runs of about the same length: few, and none for little text alone."""
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
        # After an error they still wait for the pool, which is stopped next.
        threads.shutdown(wait=False, cancel_futures=True)


def num_workers(job: Job, shards: Sequence[Shard]) -> int:
    """Return how many processes are worth it."""
    wanted = job.config.executor.num_workers
    if not wanted:
        total = sum(shard.num_bytes for shard in shards)
        wanted = min(len(os.sched_getaffinity(0)), max(1, total // BYTES_PER_WORKER))
    return min(wanted, len(shards))


@contextlib.contextmanager
def _pool(job: Job, shards: Sequence[Shard]) -> Iterator[tuple[Executor, Any]]:
    """Open a pool; one worker is a thread of this process. Left early, it stops at once."""
    context = multiprocessing.get_context("spawn")
    counts, stop = context.Array("q", 4), context.Event()
    workers = num_workers(job, shards)
    pool: Executor
    if workers == 1:
        pool = ThreadPoolExecutor(1, initializer=_enter, initargs=(counts, stop, False))
    else:
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_enter, initargs=(counts, stop, True)
        )
    try:
        yield pool, counts
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_counts: Any = None
_stop: Any = None


def _enter(counts: Any, stop: Any, is_process: bool) -> None:
    """Prepare a worker: where it counts, and when it ends."""
    global _counts, _stop
    _counts, _stop = counts, stop
    if is_process:
        # The parent is told, and tells the workers; processes are the parallelism.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["RAYON_NUM_THREADS"] = "1"
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tokenise(job: Job, shard: Shard) -> None:
    tokenise_shard(job, shard, _count)


def _count(*more: int) -> None:
    if _stop.is_set():
        raise _Cancelled
    with _counts.get_lock():
        for place, number in enumerate(more):
            _counts[place] += number
