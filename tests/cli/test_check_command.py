import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama import modeling_llama
from typer.testing import CliRunner, Result

from longred.cli import app
from longred.errors import ConfigError, PreflightError


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.mark.medium
def test_a_model_that_passes() -> None:
    result = call("demo")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "LlamaForCausalLM: the first 2 of 6 layers in float32 on cpu, extended by abf to 1,024 "
        "tokens"
    )
    assert [line for line in lines if line.startswith(("WRONG", "-"))] == []
    assert sum(line.startswith("ok ") for line in lines) == 11
    assert lines[-1] == "this model can be trained exactly"
    values = json.loads(call("demo", "--json", "--method", "pi", "--target-window", 512).stdout)
    assert values["extension"] == "pi to 512 tokens"
    assert [one["passed"] for one in values["checks"]] == [True] * 11


@pytest.mark.medium
def test_a_model_that_fails(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", scaled)
    result = call(tiny_model_folder)
    assert isinstance(result.exception, PreflightError)
    assert "cannot be trained exactly: loss: cross-entropy" in str(result.exception)
    assert "2 times as large" in str(result.exception)
    wrong = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("WRONG")]
    assert wrong == ["loss", "gradients"]


@pytest.mark.medium
def test_a_model_that_crashes(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", broken)
    result = call(tiny_model_folder)
    assert isinstance(result.exception, PreflightError)
    wrong = [line for line in result.stdout.splitlines() if line.startswith("WRONG")]
    assert [line.split("  ")[1].strip() for line in wrong] == [
        "own code",
        "passage at rising positions",
    ]
    assert all("crashes: RuntimeError: shapes cannot be multiplied" in line for line in wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-window", "100"), r"^--target-window: 100 must be larger than"),
        (("--method", "abff"), r"^--method: 'abff' is not one of abf"),
        (("--method", "dynamic"), r"^--method: dynamic takes its frequencies from"),
    ],
)
def test_options_that_cannot_work(options: tuple[str, str], message: str) -> None:
    result = call("demo", *options)
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise result.exception
