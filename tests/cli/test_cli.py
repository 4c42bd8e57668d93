"""The command line: output, its streams (stdout or stderr), and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longred.cli import app
from longred.progress import Progress
from longred.runs.record import load_config
from longred.runs.session import open_run
from longred.store.artifacts import Artifact, Store, write_json

SCORES = {"original": {"short": {"cloze": 70.0, "average": 70.0}, "ruler": {}, "similarity": 1.0}}


def longred(*arguments: str, store: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command as a user does, on a store of its own and without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "longred.cli", *arguments],
        env={**os.environ, "LONGRED_STORE": str(store), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ["run", "demo", "training.num_stepz=3"],
            2,
            "training.num_stepz: unknown key; did",
        ),
        (["demo", "data.short_length=200"], 2, "data.short_length: 200 is more than half"),
        (["run", "dema"], 2, "did you mean demo"),
        (["show", "latest"], 2, "holds no runs yet"),
        (["frobnicate"], 2, "no such verb"),
        (["up", "--prefect-port", "many"], 2, "--prefect-port"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing_behind(
    tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    result = longred(*arguments, store=tmp_path / "store")
    assert result.returncode == code
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "store").exists()


def test_help_names_every_verb_and_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['longred', '--help']\n"
        "import longred.cli\n"
        "try:\n    longred.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'prefect', 'mlflow', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    for verb in ("demo", "run", "show", "up", "down", "status"):
        assert f"\n  {verb} " in result.stdout


@pytest.fixture
def reported(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """A store with one run that has a report."""

    def report(store: Store, progress: Progress) -> Artifact:
        def make(folder: Path, work: Path) -> None:
            write_json(folder / "scores.json", SCORES)
            (folder / "table.md").write_text("| model | short |\n|---|---|\n| original | 70.0 |\n")
            (folder / "index.html").write_text("<html></html>")

        return store.build("report", {}, {}, make)

    monkeypatch.setenv("LONGRED_STORE", str(tmp_path))
    # One MLflow database for all tests that need one: making it takes seconds.
    database = tmp_path_factory.getbasetemp() / "mlflow.db"
    monkeypatch.setenv("LONGRED_TRACKING_URI", f"sqlite:///{database}")
    config = load_config("demo", ["seed=5"])
    with open_run(config, "demo", ["seed=5"]) as run:
        run.make("report", report)
    return run.store


@pytest.mark.medium
def test_show_prints_a_table_for_people_and_json_for_machines(reported: Store) -> None:
    (run_id,) = [path.name for path in reported.runs.iterdir()]
    result = CliRunner().invoke(app, ["show", "latest", "--json"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert {"run", "recipe", "digest", "stages", "scores"} <= set(shown)
    assert (shown["run"], shown["recipe"], shown["overrides"]) == (run_id, "demo", ["seed=5"])
    assert shown["digest"]
    assert shown["scores"] == SCORES
    assert shown["stages"]["report"]["status"] == "ran"
    assert Path(shown["stages"]["report"]["path"]).is_dir()
    people = CliRunner().invoke(app, ["show", run_id])
    assert people.exit_code == 0
    for text in (run_id, "finished", "| original | 70.0 |", "index.html"):
        assert text in people.stdout
    state = CliRunner().invoke(app, ["status"])
    assert "Prefect      stopped" in state.stdout
    assert run_id in state.stdout
