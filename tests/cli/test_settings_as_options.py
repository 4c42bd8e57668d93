import pytest
from typer.testing import CliRunner

from longred.cli import app
from longred.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--training.learning_rate=1e-4"],
            "--training.learning_rate: no such option; write the setting as "
            "training.learning_rate=1e-4",
        ),
        (
            ["--training.learning_rate", "1e-4"],
            "--training.learning_rate: no such option; write the setting as "
            "training.learning_rate=1e-4",
        ),
        (
            ["--learning-rate", "1e-4"],
            "--learning-rate: no such option; write the setting as training.learning_rate=1e-4",
        ),
        (["--dry-run", "--seed"], "--seed: no such option; write the setting as seed=VALUE"),
        (["--a.b=1"], "--a.b: no such option; write the setting as a.b=1"),
        (["--", "--seed=1"], "--seed: settings are written without dashes before them: seed=1"),
    ],
)
def test_a_setting_written_like_an_option_says_how_to_write_it(
    arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["run", "demo", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == message


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["--only"], ["--pilot", "x"]])
def test_other_options_are_refused_by_the_command_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["run", "demo", *arguments])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
