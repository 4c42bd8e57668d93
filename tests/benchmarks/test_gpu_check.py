"""Test the GPU check with small shapes on the CPU, without packages a GPU machine may lack."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu.items import ITEMS
from gpu.steps import at_depth, whole_step

CHECK = Path(__file__).parent / "gpu_check.py"
ROOT = CHECK.parents[2]
ABSENT = ("pydantic", "typer", "prefect", "mlflow", "datasets", "lm_eval", "peft", "torchao")
BLOCKER = f"""
import sys

sys.modules.update(dict.fromkeys({ABSENT!r}))
"""


def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the ABSENT packages cannot be imported."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(site), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def start(tmp_path: Path, *arguments: str, program: Path = CHECK) -> subprocess.Popen[str]:
    command = [sys.executable, str(program), "--tiny", "--results", str(tmp_path / "results")]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check(tmp_path: Path, *arguments: str, program: Path = CHECK) -> tuple[int, str]:
    """Run the check; return its exit code and output."""
    process = start(tmp_path, *arguments, program=program)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    (path,) = (tmp_path / "results").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def ends(found: list[dict[str, Any]]) -> dict[str, str]:
    return {line["item"]: line["status"] for line in found if line.get("is_end")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, dict[str, Any]]]:
    """Measure every item once; return exit code, output, and the last line of each item."""
    tmp_path = tmp_path_factory.mktemp("whole")
    code, output = check(tmp_path, "--deadline", "600", "--baselines", str(tmp_path / "none"))
    return code, output, {line["item"]: line for line in lines(tmp_path)}


@pytest.mark.slow
def test_every_item_is_measured(whole: tuple[int, str, dict[str, dict[str, Any]]]) -> None:
    code, output, found = whole
    assert code == 0, output
    statuses = {item.name: found[item.name]["status"] for item in ITEMS}
    # FP8 needs a GPU; all other items must run.
    assert statuses == {**dict.fromkeys(statuses, "ok"), "fp8": "skipped"}, output
    for line in found.values():
        assert line["machine"].startswith("cpu"), line
        assert {"date", "versions", "seconds"} <= line.keys()


@pytest.mark.slow
def test_micro_batches_and_the_step_stand_beside_their_plan(
    whole: tuple[int, str, dict[str, dict[str, Any]]],
) -> None:
    found = whole[2]
    for bucket in ("long", "short", "original"):
        line = found[f"buckets/{bucket}"]
        assert line["planned"].keys() == {"seconds", "peak_bytes"}
        ratio = line["measured"]["seconds"] / line["planned"]["seconds"]
        assert line["ratio"]["seconds"] == pytest.approx(ratio)
        assert found[f"shallow/{bucket}"]["settings"]["layers"] < line["settings"]["layers"]
        assert found[f"shallow/{bucket}-costs"]["measured"]["kernels"]
        assert found[f"theirs/{bucket}"]["measured"]["loss_difference"] <= 1e-4
        assert found[f"theirs/{bucket}"]["measured"]["grad_norm_difference"] <= 1e-3
    for variant in ("unfused", "documents", "deterministic"):
        assert found[f"{variant}/long"]["measured"]["seconds"] > 0
    planned = {item: found[f"{item}/short"]["planned"] for item in ("recomputed", "shallow")}
    assert planned["recomputed"]["seconds"] > planned["shallow"]["seconds"]


@pytest.mark.slow
def test_kernels_exactness_tests_and_answers_are_reported(
    whole: tuple[int, str, dict[str, dict[str, Any]]],
) -> None:
    found = whole[2]
    assert found["smoke/kernels"]["measured"]["rows"]
    assert found["smoke/attention-kl"]["measured"]["largest_error_nats"] < 1e-4
    assert found["products/speeds"]["measured"]["matmul_flops"] > 0
    assert found["attention/sdpa-256"]["ratio"].keys() == {
        "forward_flops_per_second",
        "backward_flops_per_second",
    }
    assert found["kl/float32-512"]["measured"]["largest_relative_error"] < 1e-3
    assert found["tests/counts"]["measured"]["tests"] >= 3
    assert found["tests/counts"]["failures"] == []
    assert found["generation/256"]["measured"]["generated_tokens_per_second"] > 0


@pytest.mark.slow
def test_a_killed_run_leaves_whole_lines_and_resume_measures_the_rest(tmp_path: Path) -> None:
    only = ("--only", "products,attention,kl")
    process = start(tmp_path, *only)
    assert process.stdout is not None
    for text in process.stdout:
        if text.rstrip().endswith(" attention/flash-64"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = ends(lines(tmp_path))
    # The output read here may lag behind the check, so more items may have finished.
    assert "products" in ended
    assert set(ended.values()) == {"ok"}
    _wait_for_no_process_of(tmp_path)
    (path,) = (tmp_path / "results").iterdir()
    code, output = check(tmp_path, *only, "--resume", str(path))
    assert code == 0, output
    assert "products: already measured" in output
    after = lines(tmp_path)
    assert ends(after) == dict.fromkeys(("products", "attention", "kl"), "ok")
    assert sum(line["item"] == "products" for line in after) == 1
    # Resumed into another results folder, the new file also holds all earlier lines.
    (tmp_path / "results").rename(tmp_path / "before")
    code, output = check(tmp_path, *only, "--resume", str(tmp_path / "before" / path.name))
    assert code == 0, output
    assert lines(tmp_path) == after


def _wait_for_no_process_of(tmp_path: Path) -> None:
    """Wait until no process that was started with this folder's environment is left."""
    mark = str(tmp_path / "site").encode()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes():
                    left.append(folder.name)
            except OSError:
                continue
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"processes {left} outlived the check that started them")


BROKEN = """
import os
import sys
import time

sys.path.insert(0, {folder!r})
import gpu_check
from gpu.items import ITEMS, Item

def item(name, how, seconds, limit=0.0):
    return Item(
        name=name, module="broken", seconds=seconds, tiny_seconds=seconds, limit=limit,
        options={{"how": how}},
    )

if __name__ == "__main__":
    chosen = [one for one in ITEMS if one.name == "kl"]
    ways = [
        item("raises", "raise", 1), item("dies", "die", 1), item("hangs", "hang", 1, 15.0),
        item("large", "raise", 10_000),
    ]
    sys.exit(gpu_check.main([*ways, *chosen]))
"""
MODULE = """
import os
import time

def measure(check, how):
    check.line("first", settings={}, measured={"seconds": 1.0})
    if how == "raise":
        raise ValueError("it is broken")
    if how == "die":
        print("last words", flush=True)
        os._exit(7)
    time.sleep(600)
"""


@pytest.mark.slow
def test_items_that_fail_die_or_hang_stop_no_other_and_give_exit_code_1(tmp_path: Path) -> None:
    program = tmp_path / "wrapper.py"
    program.write_text(BROKEN.format(folder=str(CHECK.parent)))
    environment(tmp_path)
    (tmp_path / "site/broken.py").write_text(MODULE)
    code, output = check(tmp_path, "--deadline", "500", program=program)
    assert code == 1, output
    found = lines(tmp_path)
    assert ends(found) == {
        "raises": "failed",
        "dies": "failed",
        "hangs": "failed",
        "large": "skipped",
        "kl": "ok",
    }
    by_item = {line["item"]: line for line in found}
    assert "ValueError: it is broken" in by_item["raises"]["error"]
    assert by_item["dies"]["error"].splitlines() == ["last words", "exit code 7"]
    # The error also shows where the item hung.
    assert "broken.py" in by_item["hangs"]["error"]
    assert "deadline" in by_item["large"]["reason"]
    assert by_item["hangs/first"]["measured"] == {"seconds": 1.0}
    # Failed items are measured again.
    (path,) = (tmp_path / "results").iterdir()
    code, output = check(
        tmp_path, "--only", "raises,kl", "--resume", str(path), "--deadline", "500", program=program
    )
    assert code == 1
    assert "kl: already measured" in output
    assert sum(line["item"] == "raises" for line in lines(tmp_path)) == 2


@pytest.mark.slow
def test_worse_figures_give_exit_code_1(tmp_path: Path) -> None:
    code, output = check(tmp_path, "--only", "kl", "--deadline", "400")
    assert code == 0, output
    found = lines(tmp_path)
    assert ends(found) == {"kl": "ok"}
    (path,) = (tmp_path / "results").iterdir()
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    for line in found:
        if line["item"] == "kl/float32-256":
            line["measured"]["seconds"] /= 100
    (baselines / path.name).write_text("".join(json.dumps(line) + "\n" for line in found))
    (tmp_path / "results" / path.name).unlink()
    code, output = check(tmp_path, "--only", "kl", "--baselines", str(baselines))
    assert code == 1, output
    assert "kl/float32-256 seconds" in output


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), "--results", str(tmp_path / "results")]
    hidden = {**environment(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert run.returncode == 3, run.stdout + run.stderr
    assert "--tiny runs the same code on the CPU" in run.stderr
    assert not (tmp_path / "results").exists()


def test_items_up_to_the_tests_fit_the_deadline() -> None:
    names = [item.name for item in ITEMS]
    first = ITEMS[: names.index("tests") + 1]
    assert sum(item.seconds for item in first) + 12 <= 540 - 60
    assert names[:4] == ["smoke", "products", "attention", "buckets"]
    assert all(item.seconds > 0 and item.tiny_seconds > 0 for item in ITEMS)


def test_a_step_is_put_together_from_two_depths() -> None:
    # 0.2 s outside the layers and 0.15 s per layer.
    assert at_depth({8: 1.4, 4: 0.8}, 32) == pytest.approx(5.0)
    assert at_depth({32: 5.1, 8: 1.4}, 32) == 5.1
    counts = {"long": 32, "short": 96, "original": 32}
    seconds = {"long": 5.0, "short": 1.0, "original": 1.25}
    assert whole_step(seconds, counts, 3.0) == pytest.approx(32 * 5 + 96 + 40 + 3)


def test_a_file_to_go_on_with_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), "--resume", str(tmp_path / "none.jsonl")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert f"--resume: {tmp_path / 'none.jsonl'} is not a file" in run.stderr
    run = subprocess.run(
        [sys.executable, str(CHECK), "--only", "kl,nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "--only: nothing is not one of smoke" in run.stderr
