"""`longred evaluate`: one command evaluates a checkpoint, a second one reuses every result."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from longred.cli import app
from longred.demo import model_path
from longred.errors import ConfigError, MismatchError, NonFiniteLossError

COMMON = ["--tasks", "brackets", "--ruler-tasks", "niah_single_1", "--num-samples", "2"]
COMMON += ["--dtype", "float32", "--device", "cpu"]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_from_the_command_line(tmp_path: Path) -> None:
    page = tmp_path / "page"
    command = ["evaluate", "demo", "--ruler", "256", "--store", str(tmp_path), *COMMON]
    command += ["--perplexity", "128", "--set", "evaluation.perplexity.num_tokens=256"]
    command += ["--judge", "demo", "--set", "evaluation.perplexity.short_context=32"]
    result = CliRunner().invoke(app, [*command, "--report", str(page), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["demo"]
    assert set(found["scores"]["short"]) == {"brackets", "average"}
    assert set(found["scores"]["ruler"]) == {"256"}
    assert 0 <= found["scores"]["overall"] <= 100
    written = json.loads((Path(found["artifact"]) / "scores.json").read_text())
    assert written["perplexity"]["128"]["num_tokens"] == 2 * 127
    html = (page / "index.html").read_text()
    assert "ruler-heat-map" in html
    assert "LongPPL, on the" in html
    assert "2 samples per task at 256 tokens" in html
    assert "standard library; lower is better" in html
    assert (page / "plots" / "depth-heat-map.png").is_file()

    artifacts = tmp_path / "artifacts"
    before = {path.name: path.stat().st_mtime_ns for path in artifacts.iterdir()}
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["demo"]["scores"] == found["scores"]
    assert {path.name: path.stat().st_mtime_ns for path in artifacts.iterdir()} == before


def changed_model(folder: Path, change: Callable[[Path], None]) -> Path:
    """Return a changed copy of the demo model."""
    shutil.copytree(model_path(), folder)
    change(folder)
    return folder


@pytest.mark.medium
def test_a_tokenizer_without_bos_and_a_short_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def forget(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        values = json.loads(path.read_text())
        kept = {k: v for k, v in values.items() if k not in ("bos_token", "eos_token", "pad_token")}
        path.write_text(json.dumps(kept))

    model = changed_model(tmp_path / "plain", forget)
    (tmp_path / "short.txt").write_text("Just a few words here.")
    command = ["evaluate", str(model), "--ruler", "256", "--store", str(tmp_path / "store")]
    command += ["--set", f"evaluation.ruler.haystack={tmp_path / 'short.txt'}", *COMMON]
    command[command.index("niah_single_1")] = "niah_single_2"
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert re.search(r"it is repeated in niah_single_2 at 256 tokens \(\d+ times\)", caplog.text)


@pytest.mark.medium
def test_a_broken_model_is_named(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights["model.norm.weight"].fill_(math.nan)
        save_file(weights, path, {"format": "pt"})

    model = changed_model(tmp_path / "broken", spoil)
    command = ["evaluate", str(model), "--store", str(tmp_path / "store"), "--tasks", "brackets"]
    command += ["--num-samples", "2", "--dtype", "float32", "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, NonFiniteLossError)
    message = str(result.exception)
    assert message.startswith("broken: short-brackets: the model's likelihoods are not finite")
    assert message.endswith("finished results are saved")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ruler", "512"], "512 tokens exceed the window of demo .*--beyond-window"),
        (["--ruler", "many"], "--ruler: many is not a list of lengths"),
        (["--ruler-tasks", "vt"], "--ruler-tasks: needs lengths, e.g. --ruler 4096"),
        (["--perplexity", "512"], "--perplexity: 512 tokens exceed the window of demo"),
        (["--perplexity", "0"], "--perplexity: 0: lengths must be 1 or more"),
        (["--judge", "demo"], "--judge: needs lengths, e.g. --perplexity 4096"),
        (["--set", "ruler.squad=a"], "--set: ruler.squad=a does not start with `evaluation.`"),
        (
            ["--set", "evaluation.ruler.squat=a"],
            r"^evaluation\.ruler\.squat: unknown key; did you mean",
        ),
        (
            ["evaluation.seed=1"],
            r"^evaluation\.seed=1: is a setting, .* as --set evaluation\.seed=1$",
        ),
        (
            ["data.seed=1"],
            r"^data\.seed=1: is a setting, .* as --set evaluation\.KEY=VALUE, for keys",
        ),
        (["--set", "evaluation.ruler.lengths=a"], r"^evaluation\.ruler\.lengths: must be a list"),
        (["--ruler", "256", "--ruler-tasks", "niah_1"], r"ruler\.tasks: niah_1 is unknown"),
        (["--suite", "demmo"], "did you mean demo"),
        (["--suite", "paper", "--capacities", "maths"], "did you mean math"),
        (["--dtype", "float8"], "--dtype: must be one of float32, bfloat16, got float8"),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "demo", *arguments, "--store", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise result.exception


@pytest.mark.medium
def test_tokenizers_are_compared_before_anything_is_made(tmp_path: Path) -> None:
    def extend(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text() + "\n")

    changed_model(tmp_path / "other", extend)
    store = tmp_path / "store"
    command = ["evaluate", str(tmp_path / "other"), "--original", "demo", "--store", str(store)]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, MismatchError)
    assert re.search(
        r"^other \(.*other\) has another tokenizer than original \(.*\); .* one by one, without "
        "--original$",
        str(result.exception),
    )
    assert not list(store.glob("artifacts/data-*"))
