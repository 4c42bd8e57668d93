"""The trainer as a child process: progress, every kind of exit, and the death of its parent."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from live import wait_until_free
from tiny_training import MakeJob, assert_same_run

from longred.errors import ConfigError, LockedError, LostProcessError, Stopped
from longred.store.artifacts import write_json
from longred.store.locks import locked
from longred.training import launch
from longred.training.launch import PausedError
from longred.training.stop import StopRequest, only_trainer

PARENT = """
import json, sys
from pathlib import Path
from longred.training import launch
from longred.method.job import TrainingJob
work = Path(sys.argv[1])
job = TrainingJob.from_json(json.loads((work / "wanted.json").read_text()))
launch.run(job, work, on_progress=lambda step, num_steps, text: print(step, flush=True))
"""


def start_parent(job, work: Path) -> subprocess.Popen:
    work.mkdir(exist_ok=True)
    write_json(work / "wanted.json", job.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(work)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_parent_then_the_same_command_again(
    make_job: MakeJob, uninterrupted: Path, tmp_path: Path
):
    job = make_job(save_every_steps=1000)
    # Enough steps that the training cannot end before its parent is killed.
    parent = start_parent(make_job(num_steps=5000, save_every_steps=5000), tmp_path / "a")
    assert parent.stdout.readline() == "1\n"
    parent.kill()
    parent.wait()
    wait_until_free(tmp_path / "a/trainer.lock")
    (saved,) = (tmp_path / "a/checkpoints").iterdir()
    assert saved.name.startswith("step-")
    log = (tmp_path / "a" / launch.LOG_NAME).read_text()
    assert "the parent process is gone" in log
    assert "stopped by signal 15" in log

    progress = []
    result = launch.run(job, tmp_path / "b", on_progress=lambda *values: progress.append(values))
    assert_same_run(result, uninterrupted)
    assert [values[:2] for values in progress] == [(step, 12) for step in range(1, 13)]
    assert re.fullmatch(r"[\d,]+ tokens/s, longred-c: loss \d.*", progress[-1][2])


LONG_STEPS = """
import sys
from longred.training import __main__ as child
child.BATCH_SECONDS = -1.0
sys.exit(child.main(sys.argv[1:]))
"""


@pytest.mark.medium
def test_a_long_step_reports_its_micro_batches(make_job: MakeJob, tmp_path: Path):
    write_json(tmp_path / "job.json", make_job(num_steps=2, micro_batch_tokens=128).to_json())
    (tmp_path / "pipes").mkdir()
    for name in ("liveness", "progress"):
        os.mkfifo(tmp_path / "pipes" / name)
    ends = [os.open(tmp_path / "pipes" / "liveness", os.O_RDWR)]
    ends.append(os.open(tmp_path / "pipes" / "progress", os.O_RDONLY | os.O_NONBLOCK))
    command = [sys.executable, "-c", LONG_STEPS, tmp_path / "job.json"]
    try:
        subprocess.run([*command, "--pipes", tmp_path / "pipes"], check=True)
        events = [json.loads(line) for line in os.read(ends[1], 2**16).splitlines()]
    finally:
        for end in ends:
            os.close(end)
    steps = [event["step"] for event in events if "metrics" in event]
    assert steps == [1, 2]
    reports = [(event["step"], *event["batches"]) for event in events if "batches" in event]
    total = reports[0][2]
    assert total > 2
    assert reports == [(step, done, total) for step in (0, 1) for done in range(1, total)]


@pytest.mark.medium
def test_signal_to_the_parent_reaches_the_trainer(make_job: MakeJob, tmp_path: Path):
    timer = threading.Timer(0.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        launch.run(
            make_job(num_steps=5000),
            tmp_path,
            on_progress=lambda step, *_: step == 2 and timer.start(),
        )
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    states = sorted((tmp_path / "checkpoints").glob("step-*/state.json"))
    assert json.loads(states[-1].read_text())["step"] >= 2


@pytest.mark.medium
def test_a_second_interrupt_kills_the_trainer_before_it_saves(
    make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer: list[psutil.Process] = []

    def interrupt_twice() -> None:
        for number in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            while len(caplog.messages) < number:
                time.sleep(0.01)

    def hold(step: int, *_: object) -> None:
        if step == 2:
            note = json.loads((tmp_path / "trainer.json").read_text())
            trainer.append(psutil.Process(note["process"]))
            # It can neither save nor end before the second signal.
            trainer[0].suspend()
            threading.Thread(target=interrupt_twice, daemon=True).start()

    with pytest.raises(Stopped, match="nothing was saved since the last checkpoint") as stopped:
        launch.run(make_job(num_steps=5000, save_every_steps=5000), tmp_path, on_progress=hold)
    assert stopped.value.exit_code == 130
    first, second = caplog.messages
    assert first.startswith("stopping after this micro-batch, then saving; Ctrl-C again")
    assert second == "stopping without saving"
    assert not trainer[0].is_running()
    assert saved_steps(tmp_path) == []


@pytest.mark.medium
def test_an_error_in_the_parent_ends_the_trainer(make_job: MakeJob, tmp_path: Path):
    def fail(step: int, num_steps: int, text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch.run(make_job(num_steps=5000), tmp_path, on_progress=fail)
    with (tmp_path / "trainer.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.medium
def test_second_trainer_ends_at_once(make_job: MakeJob, tmp_path: Path):
    with only_trainer(tmp_path, parent=os.getpid()):
        started = time.monotonic()
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):
            launch.run(make_job(), tmp_path)
        # A trainer waits ten minutes only for an orphan; the parent of this lock's holder is alive.
        assert time.monotonic() - started < 300.0


@pytest.mark.medium
def test_a_killed_child_is_a_lost_process(make_job: MakeJob, tmp_path: Path):
    note = tmp_path / "trainer.json"

    def kill_as_soon_as_it_works() -> None:
        while not note.exists():
            time.sleep(0.01)
        os.kill(json.loads(note.read_text())["process"], signal.SIGKILL)

    threading.Thread(target=kill_as_soon_as_it_works, daemon=True).start()
    with pytest.raises(LostProcessError, match="was killed by signal 9") as error:
        launch.run(make_job(num_steps=5000), tmp_path)
    assert error.value.exit_code == 1
    assert str(tmp_path / launch.LOG_NAME) in str(error.value)


def test_orphan_is_waited_for(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_json(tmp_path / "trainer.json", {"process": 1, "parent": gone.pid})
    with contextlib.ExitStack() as orphan:
        orphan.enter_context(locked(tmp_path / "trainer.lock", "a test"))
        threading.Timer(0.3, orphan.pop_all().close).start()
        with only_trainer(tmp_path, parent=None):
            note = json.loads((tmp_path / "trainer.json").read_text())
    assert note == {"process": os.getpid(), "parent": None}


def test_stop_request_sees_the_end_of_the_pipe():
    read, write = os.pipe()
    stop = StopRequest(read)
    assert stop() is None
    os.close(write)
    assert stop() == signal.SIGTERM
    os.close(read)


def test_stop_request_reads_a_signal_from_the_pipe():
    read, write = os.pipe()
    stop = StopRequest(read)
    os.write(write, bytes([signal.SIGINT, signal.SIGTERM]))
    assert stop() == stop() == signal.SIGINT
    os.close(write)
    os.close(read)


def trainers(context: psutil.Process) -> dict[str, psutil.Process]:
    """Return the training processes below a process by rank."""
    found = {}
    for process in context.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "longred.training" in process.cmdline() and "RANK" in process.environ():
                found[process.environ()["RANK"]] = process
    return found


def saved_steps(work: Path) -> list[int]:
    """Return the steps of the checkpoints in a work folder."""
    return [int(p.name.removeprefix("step-")) for p in (work / "checkpoints").glob("step-*")]


@pytest.mark.slow
def test_two_processes_started_by_accelerate(make_job: MakeJob, tmp_path: Path):
    rows = {"long": 2, "short": 4, "original": 2}
    job = make_job(rows=rows, num_steps=5000, parallel={"num_processes": 2})
    steps = []

    def kill_the_second(step: int, *_: object) -> None:
        steps.append(step)
        if step == 7:
            trainers(psutil.Process())["1"].kill()

    started = time.monotonic()
    with pytest.raises(LostProcessError, match="run the same command to go on"):
        launch.run(job, tmp_path, on_progress=kill_the_second)
    # Well below the 30-minute timeout after which processes stop waiting for a lost one.
    assert time.monotonic() - started < 600.0
    assert steps[:7] == list(range(1, 8))
    assert not trainers(psutil.Process())
    last = max(saved_steps(tmp_path))
    assert last >= 5
    assert last % 5 == 0, "only regular checkpoints, at every fifth step"

    timer = threading.Timer(0.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    again = []

    def stop_soon(step: int, *_: object) -> None:
        again.append(step)
        if step == last + 3:
            timer.start()

    with pytest.raises(Stopped) as stopped:
        launch.run(job, tmp_path, on_progress=stop_soon)
    assert stopped.value.exit_code == 143
    assert again[0] == last + 1, "the second run must resume after the saved step"
    assert not trainers(psutil.Process())
    assert max(saved_steps(tmp_path)) >= last + 3


@pytest.mark.slow
def test_an_error_of_several_processes_keeps_its_kind(
    make_job: MakeJob, tmp_path: Path, monkeypatch
):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    monkeypatch.setenv(launch.LAUNCHER, shlex.join(command))
    job = make_job(parallel={"num_processes": 2, "sequence_parallel": 2})
    with pytest.raises(ConfigError, match=r"training\.parallel\.num_processes: 2 processes cannot"):
        launch.run(job, tmp_path)


@pytest.mark.slow
def test_a_paused_training_goes_on_to_the_same_bits(
    make_job: MakeJob, uninterrupted: Path, tmp_path: Path
) -> None:
    steps: list[int] = []

    def train(stop_after: int | None) -> Path:
        return launch.run(
            make_job(),
            tmp_path,
            on_progress=lambda step, *_: steps.append(step),
            stop_after=stop_after,
        )

    with pytest.raises(PausedError) as paused:
        train(7)
    assert paused.value.work == tmp_path
    assert steps == list(range(1, 8))
    assert [p.name for p in (tmp_path / "checkpoints").glob("step-*")][-1:]
    assert not (tmp_path / "result").exists()
    assert_same_run(train(100), uninterrupted)
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_templates_are_programs_of_the_shell(name):
    path = Path(__file__).parents[2] / "deployments" / "training" / name
    result = subprocess.run(["/bin/bash", "-n", path], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
