"""`longred plan` and `run --dry-run` refuse what a run would refuse, and say it first."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from longred.cli import app

QUICK = ("--only", "cost", "--device", "h200")
"""Without the text, and without measuring this machine."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def planned(*arguments: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run("plan", *arguments, *QUICK, "--json").stdout)
    return values


REFUSED = [
    # What the extension would refuse: the demo's own window is 256.
    (["original_window=512"], "original_window: 512 exceeds the model's own window of 256"),
    (
        ["extension.method=longrope", "extension.rope_theta=null", "extension.long_factor=[2.0]"],
        "extension.long_factor:",
    ),
    # What the selection would.
    (["selection.num_distill_layers=9"], "selection.num_distill_layers: 9 is not in 1 to 6"),
    # What the data would.
    (["data.num_tokens=1000"], "data.num_tokens: 1000 gives the long bucket 500 tokens"),
    (["data.decontaminate=[/nowhere/a.txt]"], "data.decontaminate.0:"),
    # What the training would.
    (["training.num_steps=5000"], "training.max_epochs: 5,000 steps of cpt read"),
    (
        ["training.method=lora", "training.baselines=[]", "training.lora.targets=[w_pack]"],
        "training.lora.targets: w_pack is no linear layer of this model",
    ),
    # What the evaluation would.
    (
        ["evaluation.ruler.lengths=[64]"],
        "evaluation.ruler.lengths: [64] are too short for tasks that need this many tokens",
    ),
    (["evaluation.ruler.tasks=[niah_simple]"], "evaluation.ruler.tasks: niah_simple is unknown"),
    (
        ["evaluation.short.suite=dmeo"],
        "evaluation.short.suite: dmeo is unknown; did you mean demo?",
    ),
    (['evaluation.chat_template="true"'], "evaluation.chat_template: true, and the tokenizer of"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_plan_refuses_what_a_later_stage_would(changes: list[str], message: str) -> None:
    result = run("plan", "demo", *changes, *QUICK, "--json")
    assert result.exit_code == 2, result.output
    verdict = json.loads(result.stdout)["verdict"]
    assert verdict["verdict"] == "refused"
    assert verdict["why"][0].startswith(message)


def test_all_problems_are_told_at_once_and_the_cost_all_the_same() -> None:
    changes = ["selection.num_distill_layers=9", "evaluation.ruler.tasks=[niah_simple]"]
    result = run("plan", "demo", *changes, *QUICK)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert lines[0].startswith("refused: selection.num_distill_layers: 9")
    assert any(line.startswith("refused: evaluation.ruler.tasks") for line in lines)
    assert "memory fits: longred-c needs" in result.stdout
    assert max(map(len, lines)) <= 80


def test_a_plan_for_another_machine_is_not_refused_for_what_this_one_lacks() -> None:
    """Eight GPUs and vLLM are not on this machine, and may be on that one."""
    assert planned("demo", "evaluation.backend=vllm", "training.device=cuda")["verdict"] == {
        "verdict": "fits",
        "why": [],
    }


def test_small_numbers_have_small_units() -> None:
    shown = run("plan", "demo", *QUICK).stdout
    assert not re.search(r"\b0\.0+\b", shown)
    assert "5 MiB" in shown
    assert "exports claim a window of 1,024 tokens (max_position_embeddings)" in shown
    assert "epochs      long 1, short 0.5, original 0.5 (training.max_epochs=16)" in shown


def test_many_epochs_are_warned_about() -> None:
    values = planned("demo", "data.num_tokens=65536")
    assert values["verdict"]["verdict"] == "fits"
    assert any("cpt reads each text of the long bucket 15.0 times" in w for w in values["warnings"])


@pytest.mark.parametrize("name", ["llama3-8b-128k", "mistral-7b-128k", "qwen2.5-7b-128k"])
def test_packaged_recipes_are_planned_without_a_network(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    values = planned(name, "training.parallel.num_processes=8", "training.num_steps=100")
    assert values["verdict"]["verdict"] == "fits"
    assert values["cost"]["trainings"][0]["num_processes"] == 8
    assert any("tokenizer is not here" in warning for warning in values["warnings"])


def test_a_model_that_is_not_here_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "ab" * 20
    found = run("plan", "demo", "model.path=owner/model", f"model.revision={commit}", *QUICK)
    message = str(found.exception)
    assert message.startswith(f"model.path: owner/model at {commit} cannot be fetched")
    assert "set model.path to a local folder" in message


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"store.path={tmp_path / 'store'}"


@pytest.mark.slow
def test_a_dry_run_refuses_too_and_writes_nothing(store: str, tmp_path: Path) -> None:
    result = run("run", "demo", store, "training.num_steps=5000", "--dry-run")
    assert str(result.exception).startswith("training.max_epochs: 5,000 steps of cpt read")
    result = run("run", "demo", store, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "exports claim a window of 1,024 tokens" in result.stdout
    assert result.stdout.splitlines()[-1] == "nothing is refused"
    assert os.listdir(tmp_path) == []


@pytest.mark.medium
def test_a_dry_run_is_not_refused_for_stages_outside_its_scope(store: str) -> None:
    """Data alone need no trainings that work."""
    changes = [store, "training.num_steps=5000", "evaluation.ruler.lengths=[64]"]
    result = run("run", "demo", *changes, "--only", "data", "--dry-run")
    assert result.exit_code == 0, result.output
    # Nothing is made that an evaluation alone could use.
    result = run("run", "demo", store, "--only", "evaluation", "--dry-run")
    assert "--only evaluation: data is not made yet" in str(result.exception)
