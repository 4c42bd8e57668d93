"""Prepare and measure a real model's inputs with the demo model, and one step of a real one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real.inputs import METHODS, MODELS
from real.items import ORDER
from real.parts import MAX_PART_BYTES, PartsError, join, pack, read_manifest

PROGRAM = Path(__file__).parent / "real_model.py"
ROOT = PROGRAM.parents[2]
ABSENT = (
    *("pydantic", "typer", "prefect", "mlflow", "datasets", "lm_eval", "peft", "torchao"),
    *("gguf", "pyarrow", "pandas"),
)
SMALL = (
    *("--target-window", "512", "--short-length", "128", "--step-tokens", "4096"),
    *("--num-steps", "2", "--loss-rows", "2", "--similarity-tokens", "1024"),
    *("--num-distill-layers", "2", "--ruler", "niah_single_1", "niah_single_2"),
    *("--samples", "3", "--first-samples", "2", "--short-samples", "4"),
    *("--part-bytes", "1000000"),
)


def start(tmp_path: Path, *arguments: str, bare: bool = True) -> subprocess.Popen[str]:
    """Start the program; a bare machine lacks the packages ABSENT."""
    paths = [str(ROOT)]
    if bare:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        blocker = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        (site / "sitecustomize.py").write_text(blocker)
        paths.insert(0, str(site))
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(tmp_path: Path, *arguments: str, bare: bool = True) -> tuple[int, str]:
    """Run the program; return its exit code and output."""
    process = start(tmp_path, *arguments, bare=bare)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def texts(folder: Path) -> Path:
    """Write text of the standard library, as files that are long enough for a long row."""
    folder.mkdir()
    for package in ("asyncio", "email"):
        source = Path(os.__file__).parent / package
        parts = [path.read_text(encoding="utf-8") for path in sorted(source.glob("*.py"))]
        (folder / f"{package}.txt").write_text("\n\n".join(parts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs for the demo model."""
    tmp_path = tmp_path_factory.mktemp("prepared")
    text = texts(tmp_path / "text")
    output = tmp_path / "inputs"
    code, said = call(
        tmp_path,
        *("prepare", "demo", "--name", "demo", "--output", str(output), "--text", str(text)),
        *SMALL,
        bare=False,
    )
    assert code == 0, said
    return output


def copied(prepared: Path, folder: Path) -> Path:
    """Copy what travels."""
    folder.mkdir()
    for path in (*prepared.glob("part-*"), prepared / "manifest.json"):
        shutil.copyfile(path, folder / path.name)
    return folder


def lines(results: Path) -> list[dict[str, Any]]:
    (path,) = results.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def ends(found: list[dict[str, Any]]) -> dict[str, str]:
    return {line["item"]: line["status"] for line in found if line.get("is_end")}


@pytest.mark.slow
def test_every_model_is_measured_without_the_rest_of_longred(
    prepared: Path, tmp_path: Path
) -> None:
    inputs, results = copied(prepared, tmp_path / "inputs"), tmp_path / "results"
    code, said = call(
        tmp_path, "measure", str(inputs), "--tiny", "--results", str(results), "--deadline", "600"
    )
    assert code == 0, said
    (path,) = results.glob("*.jsonl")
    assert path.name.endswith("-demo-512.jsonl")
    assert path.with_suffix(".md").read_text().strip("`\n").endswith(said.strip()[-200:])
    found = lines(results)
    assert ends(found) == {work.name: "ok" for work in ORDER}, said
    by_name = {line["item"]: line for line in found}
    for method in METHODS:
        measured = by_name[f"train-{method}/steps"]["measured"]
        assert measured["num_steps"] == 2
        assert measured["tokens_per_second"] > 0
        assert measured["peak_bytes"] > 0
    layers = by_name["profile/layers"]["measured"]["distill_layers"]
    assert by_name["train-longred-c/steps"]["settings"]["distill_layers"] == layers
    for model in MODELS:
        assert len(by_name[f"{model}/loss-512"]["measured"]["bins"]) == 16
        assert 0 <= by_name[f"{model}/short-cloze"]["measured"]["score"] <= 100
        assert by_name[f"ruler-{model}/256"]["tasks"].keys() == {"niah_single_1", "niah_single_2"}
        assert (f"{model}/similarity" in by_name) == (model != "original")
    # The table: models in columns, all samples of RULER together.
    head, *rows = said.partition("\nmeasure ")[2].splitlines()
    assert head.split() == list(MODELS)
    table = {" ".join(row.split()[:-5]): row.split()[-5:] for row in rows}
    assert table["training steps"] == ["-", "-", "2", "2", "2"]
    assert "-" not in table["loss 512"]
    two, one = (by_name[f"{kind}-original/256"]["tasks"] for kind in ("ruler", "more"))
    score = (2 * two["niah_single_1"]["score"] + one["niah_single_1"]["score"]) / 3
    assert table["niah_single_1 256"][0] == f"{score:.1f}"


@pytest.mark.slow
def test_a_killed_measurement_goes_on_where_it_stopped(prepared: Path, tmp_path: Path) -> None:
    inputs, results = copied(prepared, tmp_path / "inputs"), tmp_path / "results"
    only = ("--only", "profile,train-longred-c,longred-c")
    command = ("measure", str(inputs), "--tiny", "--results", str(results), *only)
    process = start(tmp_path, *command)
    assert process.stdout is not None
    for text in process.stdout:
        if text.rstrip().endswith(" longred-c/loss-256"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ends(lines(results)).keys() >= {"profile", "train-longred-c"}
    _wait_for_no_process_of(tmp_path)
    (path,) = results.glob("*.jsonl")
    code, said = call(tmp_path, *command, "--resume", str(path))
    assert code == 0, said
    assert "train-longred-c: already measured" in said
    assert ends(lines(results)) == dict.fromkeys(("profile", "train-longred-c", "longred-c"), "ok")
    # On a machine that does not have the student, it is trained again.
    shutil.rmtree(inputs / "training")
    code, said = call(tmp_path, *command, "--resume", str(path))
    assert code == 0, said
    assert "profile: already measured" in said
    assert "train-longred-c: already measured" not in said


def _wait_for_no_process_of(tmp_path: Path) -> None:
    """Wait until no process that was started with this folder's environment is left."""
    mark, end = str(tmp_path / "site").encode(), time.monotonic() + 120
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
    raise AssertionError(f"processes {left} outlived the measurement that started them")


@pytest.mark.slow
def test_nothing_starts_that_the_deadline_leaves_no_time_for(
    prepared: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    command = ("measure", str(copied(prepared, tmp_path / "inputs")), "--tiny")
    code, said = call(tmp_path, *command, "--results", str(results), "--deadline", "10")
    assert code == 0, said
    found = [line for line in lines(results) if line.get("is_end")]
    assert len(found) == len(ORDER)
    assert all(line["status"] == "skipped" and "deadline" in line["reason"] for line in found)


def _truncate(path: Path) -> None:
    os.truncate(path, 1000)


def _change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, r"part-001 has 1,000 bytes instead of 3,000"),
        (_change, r"part-001 was changed: its sha256 differs"),
        (Path.unlink, r"part-001 is missing"),
    ],
)
def test_spoiled_parts_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(10_000))
    parts, target = tmp_path / "parts", tmp_path / "joined"
    pack({"model/weights": file, "a/b/c": PROGRAM}, parts, {"model": "x"}, part_bytes=3_000)
    assert read_manifest(parts)["model"] == "x"
    assert max(path.stat().st_size for path in parts.glob("part-*")) == 3_000
    spoil(parts / "part-001")
    with pytest.raises(PartsError, match=f"{message}; copy these parts again"):
        join(parts, target)
    assert not target.exists()


def test_joined_files_are_those_that_were_packed(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(3 * 2**20))
    parts, target = tmp_path / "parts", tmp_path / "joined"
    (parts).mkdir()
    (parts / "part-999").touch()
    pack({"model/weights": file, "a/b/c": PROGRAM}, parts, {}, part_bytes=2**20)
    assert not (parts / "part-999").exists()
    join(parts, target)
    assert (target / "model/weights").read_bytes() == file.read_bytes()
    assert (target / "a/b/c").read_bytes() == PROGRAM.read_bytes()
    # Joined files are used again, without reading the parts.
    (parts / "part-000").unlink()
    join(parts, target)
    with pytest.raises(PartsError, match="a part may have 1 to 60,000,000 bytes, not 60,000,001"):
        pack({}, parts, {}, part_bytes=MAX_PART_BYTES + 1)


def test_a_folder_that_was_not_prepared_is_named(tmp_path: Path) -> None:
    code, said = call(tmp_path, "measure", str(tmp_path), "--tiny")
    assert code == 3
    assert "manifest.json is missing: give a folder that `prepare` wrote" in said
    (tmp_path / "manifest.json").write_text('{"format_version": 0}')
    with pytest.raises(PartsError, match="format_version is 0, this program reads 1"):
        read_manifest(tmp_path)


@pytest.mark.slow
def test_one_step_of_a_real_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    """With a smaller window in its configuration, so that a CPU takes a step in a minute."""
    from longred.models.load import resolve_model

    original, model = resolve_model(str(smollm2_gguf)), tmp_path / "smollm2"
    shutil.copytree(original, model)
    path = model / "config.json"
    values = {**json.loads(path.read_text()), "max_position_embeddings": 256}
    path.write_text(json.dumps(values))
    text, output, results = texts(tmp_path / "text"), tmp_path / "inputs", tmp_path / "results"
    code, said = call(
        tmp_path,
        *("prepare", str(model), "--output", str(output), "--text", str(text), *SMALL),
        *("--step-tokens", "2048", "--num-steps", "1", "--loss-rows", "1"),
        *("--samples", "1", "--first-samples", "1", "--part-bytes", "60000000"),
        bare=False,
    )
    assert code == 0, said
    command = ("measure", str(output), "--tiny", "--results", str(results), "--deadline", "800")
    only = ("--only", "profile,original,train-longred-c,longred-c,ruler-longred-c")
    code, said = call(tmp_path, *command, *only)
    assert code == 0, said
    found = {line["item"]: line for line in lines(results)}
    losses = [found[f"{model}/loss-512"]["measured"] for model in ("original", "longred-c")]
    # A language model that has read code, before and after one small step.
    assert all(0.5 < loss["nats_per_token"] < 3.0 for loss in losses)
    assert found["longred-c/similarity"]["measured"]["last"] > 0.5
