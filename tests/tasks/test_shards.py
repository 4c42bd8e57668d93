"""Groups of shards in Prefect: one task run each; the first error ends the wait."""

import threading

import pytest
from prefect import flow

from longred.data.executors import Group
from longred.data.shards import Part, Shard
from longred.errors import ConfigError
from tasks.shards import map_groups


def groups(count: int) -> list[Group]:
    return [[Shard(0, "words", number, (Part("a"),))] for number in range(count)]


@pytest.mark.usefixtures("prefect_server")
def test_every_group_is_run_and_the_wait_ticks() -> None:
    met = threading.Barrier(3, timeout=60)
    ran, ticks = [], []

    def run(group: Group) -> None:
        met.wait()  # passes only if all groups run concurrently
        ran.append(group[0].number)

    @flow
    def tokenise() -> None:
        map_groups(run, groups(3), lambda: ticks.append(1))

    tokenise()
    assert sorted(ran) == [0, 1, 2]
    assert ticks


@pytest.mark.usefixtures("prefect_server")
def test_an_error_of_a_group_is_the_preparations() -> None:
    def run(group: Group) -> None:
        raise ConfigError(f"data: {group[0].number}")

    @flow
    def tokenise() -> None:
        map_groups(run, groups(1), lambda: None)

    with pytest.raises(ConfigError, match="data: 0"):
        tokenise()
