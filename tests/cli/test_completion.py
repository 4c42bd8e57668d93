"""The shell completes recipes, runs and stages; help and version answer on every verb."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import longred
from longred.cli import VERBS, app
from longred.cli.completion import COMPLETIONS

NEWEST, OLDEST = "20260102-000000-demo-bbbb", "20260101-000000-demo-aaaa"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two runs, of which only the names are read."""
    for name in (OLDEST, NEWEST):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("longred co", ["config", "compare"]),
        ("longred run llama3-8b-1", ["llama3-8b-128k"]),
        ("longred run llama3-8b-6", ["llama3-8b-64k-olmo3", "llama3-8b-64k-prolong"]),
        ("longred run lat", ["latest"]),
        ("longred run 20260101", [OLDEST]),
        ("longred plan qw", ["qwen2.5-7b-128k"]),
        ("longred run demo --only e", ["extension", "evaluation"]),
        ("longred run demo --from r", ["report"]),
        ("longred show 2026", [NEWEST, OLDEST]),
        ("longred compare latest 20260102", [NEWEST]),
        ("longred inspect nothing", []),
    ],
)
def test_the_shell_completes(
    line: str, expected: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGRED_STORE", str(store))
    answer = CliRunner().invoke(
        app,
        prog_name="longred",
        env={
            "_LONGRED_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        },
    )
    assert answer.stdout.split() == expected


def test_a_store_named_on_the_line_is_completed_and_a_broken_one_is_silent(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGRED_STORE", str(tmp_path / "another"))
    environment = {
        "_LONGRED_COMPLETE": "complete_bash",
        "COMP_WORDS": f"longred show --store {store} 20260101",
        "COMP_CWORD": "4",
    }
    answer = CliRunner().invoke(app, prog_name="longred", env=environment)
    assert answer.stdout.split() == [OLDEST]
    monkeypatch.setattr("longred.cli.completion.open_store", _refuse)
    answer = CliRunner().invoke(app, prog_name="longred", env=environment)
    assert (answer.stdout.strip(), answer.stderr) == ("", "")


def _refuse(path: str | None) -> None:
    raise PermissionError(path)


def test_every_completion_belongs_to_a_parameter() -> None:
    names = {name for group in VERBS.values() for verb in group for name in verb.__annotations__}
    assert set(COMPLETIONS) <= names


@pytest.mark.parametrize("verb", [verb.__name__ for group in VERBS.values() for verb in group])
def test_h_is_help_on_every_verb(verb: str) -> None:
    short, long = (CliRunner().invoke(app, [verb, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert short.stdout.startswith("Usage: ")


def test_help_lists_each_verb_once_under_its_heading() -> None:
    lines = CliRunner().invoke(app, ["-h"]).stdout.splitlines()
    for heading, verbs in VERBS.items():
        start = lines.index(f"{heading}:")
        for verb in verbs:
            (at,) = (n for n, line in enumerate(lines) if line.startswith(f"  {verb.__name__} "))
            assert at > start
    commands = {command.callback for command in app.registered_commands}
    assert commands == {verb for group in VERBS.values() for verb in group}


def test_version_is_the_packages() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert answer.stdout == f"longred {longred.__version__}\n"
