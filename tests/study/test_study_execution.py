"""Runs of a study as child processes: their share of the machine, their errors, their end."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from longred.errors import ConfigError, Stopped
from longred.study.cells import PlannedCell, plan_cells
from longred.study.execute import Children, Slot, divide
from longred.study.spec import Study

STUDY = {
    "title": "t",
    "recipe": "demo",
    "seeds": [0],
    "panels": {"p": {"title": "p", "baseline": "a", "variants": {"a": {}}}},
}


def planned(*overrides: str) -> PlannedCell:
    (cell,) = plan_cells(Study.model_validate(STUDY))
    return replace(cell, overrides=(*cell.overrides, *overrides))


def test_gpus_are_divided_and_else_the_cores() -> None:
    gpus = [slot.environment for slot in divide(2, num_gpus=8, num_cores=64)]
    assert gpus == [{"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}]
    assert divide(3, num_gpus=0, num_cores=8) == [Slot({"OMP_NUM_THREADS": "2"})] * 3
    assert divide(4, num_gpus=0, num_cores=2) == [Slot({"OMP_NUM_THREADS": "1"})] * 4


def test_the_error_of_a_run_is_raised_with_its_name_and_log(tmp_path: Path) -> None:
    cell, log = planned("training.num_step=1"), tmp_path / "logs" / "a.log"
    wanted = r"p/a seed 0: training\.num_step: unknown key; did you mean .*a\.log"
    with pytest.raises(ConfigError, match=wanted):
        Children().run(cell, Slot({}), log, [f"store.path={tmp_path / 'store'}"])


def test_a_study_that_is_stopped_ends_its_runs_and_starts_no_other(tmp_path: Path) -> None:
    children, ends = Children(), list[BaseException]()

    def run() -> None:
        try:
            children.run(planned(), Slot({}), tmp_path / "a.log", [f"store.path={tmp_path}"])
        except Stopped as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 60
    while not (tmp_path / "work").exists() and time.monotonic() < until:
        time.sleep(0.1)
    children.stop()
    thread.join(60)
    run()
    assert len(ends) == 2


def test_a_run_ends_with_the_process_of_its_study(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'longred.cli.child', 'run', 'demo', "
        f"'store.path={tmp_path}']\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until = time.monotonic() + 60
    while not (tmp_path / "work").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
