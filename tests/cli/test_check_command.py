import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MambaConfig
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


@pytest.mark.parametrize("kind", [MambaConfig, GPTNeoXConfig])
def test_a_model_of_other_parts_is_refused(
    kind: type[Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    vocab_size = json.loads((tiny_model_folder / "config.json").read_text())["vocab_size"]
    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2}
    if kind is GPTNeoXConfig:
        sizes |= {"num_attention_heads": 4, "intermediate_size": 32}
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    AutoModelForCausalLM.from_config(kind(**sizes)).save_pretrained(folder)
    result = call(folder)
    assert isinstance(result.exception, ConfigError)
    assert "has no part embed_tokens" in str(result.exception)


def test_a_passage_that_cannot_be_read_is_a_finding(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("view size is not compatible")

    monkeypatch.setattr("longred.profiling.passage.passage_perplexities", broken)
    result = call(tiny_model_folder)
    assert isinstance(result.exception, PreflightError)
    assert "passage at rising positions: crashes: RuntimeError: view size" in str(result.exception)


def test_a_model_that_does_not_fit_is_not_said_to_pass(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longred.training.handshake.memory_of", lambda device: 1000.0)
    result = call(tiny_model_folder)
    assert isinstance(result.exception, PreflightError)
    assert "layers do not fit this machine: " in str(result.exception)
    assert "can be trained exactly" not in result.stdout


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
