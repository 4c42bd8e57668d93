"""Groups of shards as mapped task runs, so that Prefect shows what is being tokenised."""

from collections.abc import Callable

from longred.data.executors import Group

TICK_SECONDS = 1.0


def map_groups(run: Callable[[Group], None], groups: list[Group], tick: Callable[[], None]) -> None:
    """Run each group in its own task run; `executors.run_shards` limits their number.

    Args:
        run: tokenises one group.
        groups: the groups of shards.
        tick: called about every `TICK_SECONDS` while groups are running.
    """
    from prefect import task, unmapped
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import wait

    @task(task_run_name="tokenise {label}", cache_policy=NO_CACHE, persist_result=False)
    def tokenise_group(label: str, number: int, run: Callable[[int], None]) -> None:
        """Wait for the processes that tokenise one group of shards."""
        run(number)

    futures = tokenise_group.map(
        [f"{g[0].name} {g[0].number} to {g[-1].name} {g[-1].number}" for g in groups],
        list(range(len(groups))),
        unmapped(lambda number: run(groups[number])),
    )
    waiting = list(futures)
    while waiting:
        done, rest = wait(waiting, timeout=TICK_SECONDS)
        for future in done:
            future.result()
        waiting = list(rest)
        tick()
