"""Two processes and one artifact: the second is refused, or waits and uses the first one's."""

import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from longred.errors import LockedError
from longred.store.artifacts import Store, read_json, write_json

SPAWN = multiprocessing.get_context("spawn")
VALUES = {"a": 1}


def build(root: Path, entered: Event, leave: Event, *, waits: bool, name: str) -> None:
    """Build one artifact; note in the folder `log` who built it and who only used it."""
    store = Store(root)
    store.waits = waits

    def make(folder: Path, work: Path) -> None:
        # Two builders at once would find each other here.
        with (root / "building").open("x"):
            pass
        entered.set()
        assert leave.wait(60)
        write_json(folder / "who.json", name)
        (root / "building").unlink()

    artifact = store.build("data", VALUES, {}, make)
    (root / f"{name}-{'used' if artifact.reused else 'built'}").touch()


def start(root: Path, entered: Event, leave: Event, name: str, *, waits: bool = True) -> object:
    settings = {"waits": waits, "name": name}
    process = SPAWN.Process(target=build, args=(root, entered, leave), kwargs=settings)
    process.start()
    return process


def marks(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.name.endswith(("-used", "-built"))}


def test_without_waiting_a_second_builder_is_refused(tmp_path: Path) -> None:
    entered, leave = SPAWN.Event(), SPAWN.Event()
    first = start(tmp_path, entered, leave, "first")
    assert entered.wait(60)
    with pytest.raises(LockedError, match=r"data-.* is in use by process \d+"):
        Store(tmp_path).build("data", VALUES, {}, lambda folder, work: None)
    leave.set()
    first.join(60)  # type: ignore[attr-defined]
    assert marks(tmp_path) == {"first-built"}


def test_waiting_processes_use_what_the_first_one_builds(tmp_path: Path) -> None:
    entered, leave = SPAWN.Event(), SPAWN.Event()
    processes = [start(tmp_path, entered, leave, "first")]
    assert entered.wait(60)
    processes += [start(tmp_path, entered, leave, f"other{n}") for n in range(3)]
    time.sleep(3)
    assert marks(tmp_path) == set()
    leave.set()
    for process in processes:
        process.join(60)  # type: ignore[attr-defined]
        assert process.exitcode == 0  # type: ignore[attr-defined]
    assert marks(tmp_path) == {"first-built", "other0-used", "other1-used", "other2-used"}
    assert not list((tmp_path / "work").iterdir())


def test_after_a_killed_builder_one_of_the_waiting_builds(tmp_path: Path) -> None:
    entered, never, leave = SPAWN.Event(), SPAWN.Event(), SPAWN.Event()
    first = start(tmp_path, entered, never, "first")
    assert entered.wait(60)
    again = SPAWN.Event()
    others = [start(tmp_path, again, leave, f"other{n}") for n in range(2)]
    time.sleep(3)
    os.kill(first.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    first.join(60)  # type: ignore[attr-defined]
    (tmp_path / "building").unlink()
    assert again.wait(60)
    leave.set()
    for process in others:
        process.join(60)  # type: ignore[attr-defined]
        assert process.exitcode == 0  # type: ignore[attr-defined]
    assert sorted(mark.partition("-")[2] for mark in marks(tmp_path)) == ["built", "used"]
    (artifact,) = (tmp_path / "artifacts").iterdir()
    assert read_json(artifact / "who.json").startswith("other")


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    entered, leave, never = SPAWN.Event(), SPAWN.Event(), SPAWN.Event()
    first = start(tmp_path, entered, leave, "first")
    assert entered.wait(60)
    second = start(tmp_path, never, leave, "second")
    time.sleep(3)
    second.terminate()  # type: ignore[attr-defined]
    second.join(10)  # type: ignore[attr-defined]
    assert second.exitcode == -signal.SIGTERM  # type: ignore[attr-defined]
    leave.set()
    first.join(60)  # type: ignore[attr-defined]
    assert marks(tmp_path) == {"first-built"}
