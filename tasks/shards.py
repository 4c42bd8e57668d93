"""Groups of shards as mapped task runs, so that Prefect shows what is tokenised."""

from collections.abc import Callable

from prefect import task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait

from longred.data.executors import Group

TICK_SECONDS = 1.0


@task(
    task_run_name="tokenise {label}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def tokenise_group(label: str, number: int, run: Callable[[int], None]) -> None:
    """Wait for the processes that tokenise one group of shards."""
    run(number)


def map_groups(run: Callable[[Group], None], groups: list[Group], tick: Callable[[], None]) -> None:
    """Run every group as a task run of its own; `executors.run_shards` bounds their number."""
    futures = tokenise_group.map(
        [_label(group) for group in groups],
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


def _label(group: Group) -> str:
    first, last = group[0], group[-1]
    return f"{first.name} {first.number} to {last.name} {last.number}"
