"""Programs that a model writes: run in a process of their own, and counted as pass@k."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from longred.errors import PreflightError
from longred.evaluation.metrics import code
from longred.evaluation.metrics.code import CodeEval, pass_at_k, run_program


@pytest.mark.parametrize("passed", [[], [0], [1, 3], [0, 1, 2, 3, 4]])
def test_pass_at_k_is_the_share_of_draws_with_a_right_program(passed: list[int]) -> None:
    for k in range(1, 6):
        draws = list(itertools.combinations(range(5), k))
        share = sum(bool(set(draw) & set(passed)) for draw in draws) / len(draws)
        assert pass_at_k(5, len(passed), k) == pytest.approx(share)


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "failed: AssertionError"),
        ("def f(:", "failed: SyntaxError"),
        ("raise SystemExit(0)\nassert False", "failed: SystemExit"),
        ("import os\nos._exit(0)", "failed: the process ended with status 0"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed: the process ended"),
        ("x = bytearray(2**40)", "failed: MemoryError"),
        ("open('big', 'wb').write(bytes(2**27))", "failed: "),
        ("input()", "failed: EOFError"),
        ("raise ValueError('\\ud800')", "failed: ValueError"),
        ("open('mine', 'w').write('x')\nimport os\nassert os.listdir() == ['mine']", "passed"),
    ],
)
def test_a_program_passes_if_it_runs_to_its_end(program: str, outcome: str) -> None:
    assert run_program(program).startswith(outcome)


def is_running(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.medium
def test_a_program_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run_program("while True: 1 + 1", 0.3) == "timed out"
    stubborn = "import time\ntry:\n    time.sleep(9)\nexcept BaseException:\n    pass"
    assert run_program(stubborn, 0.3) == "timed out"
    child = tmp_path / "child"
    start = "import subprocess\nstarted = subprocess.Popen(['sleep', '60'])"
    left = f"{start}\nopen({str(child)!r}, 'w').write(str(started.pid))"
    assert run_program(left) == "passed"
    while is_running(int(child.read_text())):
        assert time.monotonic() - started < 20
        time.sleep(0.05)


def test_keys_of_the_environment_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "HF_TOKEN" in os.environ
    assert run_program("import os\nassert 'HF_TOKEN' not in os.environ") == "passed"


def test_lower_limits_of_a_batch_job_remain() -> None:
    limited = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "from longred.evaluation.metrics.code import run_program\n"
        "print(run_program('import resource\\n'\n"
        "    'assert resource.getrlimit(resource.RLIMIT_AS)[0] == 2**31'))"
    )
    run = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert run.stdout.strip() == "passed", run.stderr


def test_results_have_the_names_of_code_eval() -> None:
    programs = [["def add(a, b): return a * b", "def add(a, b): return a + b"], ["x", "x = 1"]]
    rates, details = CodeEval().compute(
        references=["assert add(2, 3) == 5", "assert x == 1"], predictions=programs, k=[1, 2, 5]
    )
    assert rates == {"pass@1": 0.5, "pass@2": 1.0}
    assert [[found["passed"] for _, found in details[n]] for n in (0, 1)] == [[False, True]] * 2
    assert details[1][0][1]["result"].startswith("failed: NameError")


def test_a_machine_that_runs_no_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "run_program", lambda program: "failed: no limits")
    with pytest.raises(PreflightError, match=r"an empty program does not run .*\(failed: no limi"):
        CodeEval()
