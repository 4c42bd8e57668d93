"""`longred config`: what can be set, readable in 80 columns, and for machines."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from longred.cli import app
from longred.config import RunConfig, describe
from longred.errors import ConfigError
from longred.recipes import RECIPES


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(*arguments: str) -> str:
    """Return what the command prints."""
    result = CliRunner().invoke(app, ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_a_name_it_lists_the_top_level_and_the_sections() -> None:
    lines = shown().splitlines()
    first = [line.split()[0] for line in lines[:-1] if line and not line.startswith(" ")]
    assert first == list(RunConfig.model_fields)
    assert any(line.startswith("target_window    required  Window of the ext") for line in lines)


@pytest.mark.parametrize("section", ["training", "data.sources.0", "evaluation.perplexity"])
def test_a_section_lists_its_keys_with_default_and_first_sentence(section: str) -> None:
    text = shown(section)
    group = section.replace(".0", ".N")
    for key in describe.keys(group):
        assert f"\n{key.name.removeprefix(f'{group}.')} " in text
    assert text.startswith(f"{group}: {describe.groups()[group]}".split(",")[0])


def test_no_line_is_longer_than_the_terminal() -> None:
    for name in ("", *describe.groups()):
        for line in shown(*filter(None, [name])).splitlines()[:-1]:
            assert len(line) <= 80, line


def test_a_key_says_all_about_itself() -> None:
    text = shown("training.micro_batch_tokens")
    facts = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line[:9])
    assert text.startswith("training.micro_batch_tokens\n\nMost tokens of one forward")
    assert facts["type"].strip() == "a whole number of 1 or more"
    assert facts["unit"].strip() == "tokens"
    assert facts["default"].strip() == "32768"
    assert facts["changes"].strip().startswith("rebuilds training, and the later stages")
    assert facts["example"].strip() == "training.micro_batch_tokens=32768"
    assert "4096 in demo" in facts["recipes"]


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("seed", "rebuilds data, training, evaluation, and"),
        ("data.short_length", "rebuilds data, training, and"),
        ("model.path", "rebuilds model, and"),
        ("name", "rebuilds report, and"),
        ("training.compile", "rebuilds nothing"),
        ("training.parallel.replicas", "rebuilds nothing"),
        ("attention.backend", "rebuilds nothing"),
        ("evaluation.ruler.squad", "rebuilds evaluation, and"),
    ],
)
def test_a_key_says_what_is_rebuilt_when_it_changes(name: str, effect: str) -> None:
    assert f"changes  {effect}" in shown(name)


def test_examples_are_quoted_for_a_shell() -> None:
    assert "training.baselines='[cpt]'" in shown("training.baselines")
    assert "longred config data.sources.N" in shown("data.sources")


def test_json_has_every_key() -> None:
    found = json.loads(shown("--json"))
    assert [each["name"] for each in found] == [key.name for key in describe.keys("")]
    (one,) = json.loads(shown("training.schedule", "--json"))
    assert one["allowed"] == ["constant", "cosine", "wsd"]
    assert one["default"] == "constant"
    assert not one["is_runtime"]


def test_the_schema_is_the_one_beside_the_recipes() -> None:
    assert shown("--schema") == (RECIPES / "schema.json").read_text(encoding="utf-8")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"lerning_rate: .*did you mean training\.learning_rate"):
        CliRunner().invoke(app, ["config", "lerning_rate"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="--schema"):
        CliRunner().invoke(app, ["config", "training", "--schema"], catch_exceptions=False)


def test_it_starts_fast() -> None:
    program = (
        "import sys; sys.argv = ['longred', 'config', 'training.learning_rate']\n"
        "import longred.cli\n"
        "try:\n    longred.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'prefect', 'mlflow', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Peak learning rate" in result.stdout
