import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from longred.config import load_recipe
from longred.errors import ConfigError, MismatchError
from longred.export import check as checking
from longred.export import probe
from longred.export.card import usable_length
from longred.export.check import check_export
from longred.export.serving import serve_commands, serving_notes
from longred.export.write import export_student, find_step, find_student
from longred.models.extension import extend_config, write_extension
from longred.models.load import load_model, save_model
from longred.runs.record import RunRecord, StageRecord
from longred.store.artifacts import Store, read_json, write_json
from longred.store.journal import Journal

ROPES = {
    "abf": {"method": "abf", "rope_theta": 1e6},
    "pi": {"method": "pi"},
    "yarn": {"method": "yarn"},
    "longrope": {"method": "longrope"},
    "longrope-mixed": {"method": "longrope", "short_factor": "original"},
    "cope": {"method": "cope", "rope_theta": 1e6},
    "drope": {"method": "drope"},
}
CHAT = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
TABLE = "# Result\n\n| model | short | RULER 256 |\n|---|---:|---:|\n| longred-c | 73.2 | 78.0 |\n"


def trained_run(original: Path, root: Path, rope: str) -> tuple[Store, RunRecord]:
    """A store with a trained student and a report, and the record of their run."""
    store = Store(root / "store")
    settings = {"original_window": 64, "target_window": 256, **ROPES[rope]}

    def train(folder: Path, work: Path) -> None:
        base = Path(shutil.copytree(original, root / "original"))
        (base / "chat_template.jinja").write_text(CHAT)
        write_extension(base, root / "student", digest="0", **settings)
        model = load_model(root / "student")
        with torch.no_grad():
            torch.manual_seed(1)
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        save_model(model, root / "student", folder)
        shutil.copytree(root / "student", folder / "kept/step-000010")
        summary = {
            "method": "longred-c",
            "num_steps": 30,
            "tokens": 245760,
            "seconds": 61.0,
            "distill_layers": [2, 3],
            "environment": {"hardware": "x86_64"},
            "job": {
                "learning_rate": 5e-4,
                "warmup_steps": 1200,
                "rows": {"long": 4, "short": 24, "original": 4},
                "original_window": 256,
                "target_window": 1024,
            },
        }
        write_json(folder / "training.json", summary)

    def report(folder: Path, work: Path) -> None:
        (folder / "table.md").write_text(TABLE)
        write_json(folder / "scores.json", SCORES)
        journal = Journal(folder / "metrics.jsonl")
        for step, values in BY_STEP.items():
            journal.append(
                {f"longred-c/by_step/{key}": value for key, value in values.items()}, step=step
            )
        journal.close()

    stages = []
    for name, make in (("training", train), ("report", report)):
        made = store.build(name, {"rope": rope}, {}, make)
        label = "training/longred-c" if name == "training" else name
        stages.append(StageRecord(label, name, "ran", digest=made.digest, path=made.path))
    overrides = [f"extension.{key}={value}" for key, value in ROPES[rope].items()]
    if "rope_theta" not in ROPES[rope]:
        overrides.append("extension.rope_theta=null")
    config = load_recipe("demo", [f"model.path={original}", *overrides])
    return store, RunRecord("r1", "demo", [], config.model_dump(mode="json"), "d", stages=stages)


BY_STEP = {
    0: {"short_average": 99.0, "attention_kl": 0.001},
    10: {"short_average": 71.5, "attention_kl": 0.3},
    20: {"short_average": 80.0, "attention_kl": 0.2},
    30: {"short_average": 71.5, "attention_kl": 0.1},
}
SCORES: dict[str, Any] = {
    "original": {"ruler": {"256": {"average": 96.0}, "512": {"average": 0.0}}},
    "longred-c": {
        "ruler": {
            "256": {"average": 95.0},
            "512": {"average": 91.0},
            "1024": {"average": 78.0},
        }
    },
}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load folders in this process, and make version 4 unavailable."""

    def read(folder: Path, work: Path, packages: Path | None = None) -> Any:
        probe.main(str(folder), str(work / "request.json"), str(work / "result.json"))
        return read_json(work / "result.json")

    monkeypatch.setattr(checking, "_probe", read)
    monkeypatch.setattr(checking, "_fetch_version_4", lambda folder: "out of reach")


def inside(rope: str) -> dict[str, bool | None]:
    """What is compared of a student that has another RoPE inside the original window."""
    name = "RoPE of full attention inside the original window"
    return {name: True} if rope == "longrope-mixed" else {}


def verdicts(findings: list[checking.Finding]) -> dict[str, bool | None]:
    return {finding.what: finding.passed for finding in findings}


@pytest.mark.parametrize(
    ("rope", "dtype"),
    [
        ("abf", "bfloat16"),
        ("pi", "trained"),
        ("yarn", "trained"),
        ("longrope", "bfloat16"),
        ("longrope-mixed", "trained"),
        ("cope", "trained"),
        ("drope", "bfloat16"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_an_exported_student_is_the_trained_one(
    rope: str, dtype: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, rope)
    exported = export_student(store, run, tmp_path / "ship" / "model", dtype=dtype)
    assert exported.dtype == (torch.float32 if dtype == "trained" else torch.bfloat16)
    assert verdicts(list(check_export(exported))) == {
        "window": True,
        "chat template": True,
        "RoPE of full attention": True,
        **inside(rope),
        "trainer's inv_freq": True,
        "logits": True,
        "passage": True,
        "loading": None,
    }
    # Stock transformers against the weights of the trained folder.
    stock = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=exported.dtype).float()
    trained = load_model(exported.trained.folder, dtype=exported.dtype).float()
    tokens = torch.randint(500, (1, 200))
    torch.testing.assert_close(stock(tokens).logits, trained(tokens).logits, atol=1e-4, rtol=1e-4)
    values = json.loads((exported.folder / "config.json").read_text())
    assert values["max_position_embeddings"] == 256
    assert values["dtype"] == ("float32" if dtype == "trained" else "bfloat16")
    assert (exported.folder / "generation_config.json").is_file()
    assert AutoTokenizer.from_pretrained(exported.folder).chat_template == CHAT
    if rope == "yarn":
        scaling = values["rope_scaling"]
        assert scaling == {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        assert isinstance(scaling["original_max_position_embeddings"], int)
        assert 64 * scaling["factor"] == values["max_position_embeddings"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rope_theta": 10000.0, "rope_parameters": None}, "RoPE of full attention"),
        ({"max_position_embeddings": 64}, "window"),
        ({"rms_norm_eps": 10.0}, "logits"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_a_folder_that_reads_otherwise_is_refused(
    change: dict[str, Any], what: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, "abf")
    exported = export_student(store, run, tmp_path / "model", dtype="trained")
    path = exported.folder / "config.json"
    write_json(path, {**read_json(path), **change})
    with pytest.raises(MismatchError, match=f"does not read the trained model: {what}.*do not"):
        list(check_export(exported))


@pytest.mark.medium
def test_another_process_reads_it_back(tiny_model_folder: Path, tmp_path: Path) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, "yarn")
    exported = export_student(store, run, tmp_path / "model", dtype="bfloat16")
    checking._trainers_model(exported, tmp_path / "request.json")
    seen = checking._probe(exported.folder, tmp_path)
    assert seen["transformers"].startswith("5.")
    assert seen["window"] == 256


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Transformers 4 is installed once for all tests of this file, instead of for each check."""
    folder = tmp_path_factory.mktemp("version-4") / "packages"
    problem = checking._fetch_version_4(folder)

    def link(target: Path) -> str | None:
        if problem is None:
            target.symlink_to(folder)
        return problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "_fetch_version_4", link)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_4")
@pytest.mark.parametrize("rope", ROPES)
def test_transformers_4_reads_it_too(rope: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, rope)
    exported = export_student(store, run, tmp_path / "model", dtype="bfloat16")
    findings = list(check_export(exported))
    unchecked = [finding.text for finding in findings if finding.passed is None]
    if unchecked:
        pytest.skip(unchecked[0])
    by_4 = [finding for finding in findings if finding.version.startswith("4.")]
    assert verdicts(by_4) == {
        "window": True,
        "chat template": True,
        "RoPE of full attention": True,
        **inside(rope),
        "logits": True,
        "passage": True,
    }


def test_the_card_says_what_was_measured(tiny_model_folder: Path, tmp_path: Path) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, "yarn")
    card = (
        export_student(store, run, tmp_path / "m", dtype="trained").folder / "README.md"
    ).read_text()
    _, metadata, text = card.split("---\n", 2)
    values = yaml.safe_load(metadata)
    assert values["library_name"] == "transformers"
    assert "longred-c" in values["tags"]
    assert "base_model" not in values, "a local folder is no name on the hub"
    for part in (
        "256 to 1,024 tokens",
        "| rope_type | yarn |",
        "| distilled hidden states | 2, 3 |",
        "| text | 50.0% long (blocks of 1,024 tokens), 37.5% short (blocks of 128 tokens), "
        "12.5% original (blocks of 256 tokens) |",
        "| optimizer | adamw; no earlier state was loaded: moments started at 0, "
        "with 1,200 steps of warm-up |",
        "| longred-c | 73.2 | 78.0 |",
        "512 tokens is the longest measured length",
        "synthetic tasks do not show",
        "vllm serve MODEL --max-model-len 256",
    ):
        assert part in text
    run.stages.pop()
    again = (
        export_student(store, run, tmp_path / "n", dtype="trained").folder / "README.md"
    ).read_text()
    assert "Nothing was measured in this run." in again
    assert "RULER means" not in again


def test_usable_length_in_words() -> None:
    config = {"original_window": 256}
    said = usable_length(SCORES, "longred-c", config)
    assert said.startswith("512 tokens is the longest measured length at which RULER keeps 85%")
    assert "256, 512, 1,024" in said
    assert usable_length(SCORES, "cpt", config).startswith("RULER was not measured")
    poor = {**SCORES, "cpt": {"ruler": {"256": {"average": 1.0}}}}
    assert usable_length(poor, "cpt", config).startswith(
        "At no measured length does RULER reach 85%"
    )


def test_bad_input(tiny_model_folder: Path, tmp_path: Path) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, "abf")
    with pytest.raises(ConfigError, match="no trained student of method cpt; it has longred-c"):
        export_student(store, run, tmp_path / "m", method="cpt", dtype="trained")
    with pytest.raises(ConfigError, match="--dtype: 'int4' is not one of bfloat16, trained"):
        export_student(store, run, tmp_path / "m", dtype="int4")
    with pytest.raises(ConfigError, match="is not empty; name a new folder"):
        export_student(store, run, tiny_model_folder, dtype="trained")
    weights = Path(str(run.stages[0].path)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(MismatchError, match="differs from its manifest"):
        export_student(store, run, tmp_path / "m", dtype="trained")
    assert not (tmp_path / "m").exists()
    run.stages.clear()
    with pytest.raises(ConfigError, match="it has none yet"):
        export_student(store, run, tmp_path / "m", dtype="trained")


def test_servers_are_told_the_window_and_their_conflicts() -> None:
    config = LlamaConfig(max_position_embeddings=8192, architectures=["LlamaForCausalLM"])
    extended = {
        rope: extend_config(config, target_window=32768, **settings)
        for rope, settings in {**ROPES, "abf": {"method": "abf", "rope_theta": 2e7}}.items()
    }
    commands = serve_commands(extended["abf"], Path("/models/my model"))
    assert commands["vLLM"] == ["vllm serve '/models/my model' --max-model-len 32768"]
    assert commands["SGLang"] == [
        "python -m sglang.launch_server --model-path '/models/my model' --context-length 32768"
    ]
    assert commands["llama.cpp"][1] == "llama-server --model 'my model.gguf' --ctx-size 32768"
    assert serving_notes(extended["abf"]) == []
    (linear,) = serving_notes(extended["pi"])
    assert "would offer 131072 tokens; the flags above limit them to 32768" in linear
    (yarn,) = serving_notes(extended["yarn"])
    assert "8192 x 4" in yarn
    assert len(serving_notes(extended["longrope"])) == 2
    starts, chooses, _ = serving_notes(extended["longrope-mixed"])
    assert "original window of 8192 unless" in starts
    assert "vLLM takes the long factors at every length if --max-model-len exceeds 8192" in chooses
    (damped,) = serving_notes(extended["cope"])
    assert damped.startswith("llama.cpp converts longrope factors only for")
    assert serving_notes(extended["drope"]) == []
    qwen = extend_config(
        Qwen2Config(max_position_embeddings=8192), method="drope", target_window=32768
    )
    assert "it would rotate this qwen2 model" in serving_notes(qwen)[0]
    for each in (extended["drope"], qwen):
        assert serve_commands(each, Path("m"))["vLLM"] == ["vllm serve m --max-model-len 32768"]


def test_a_student_that_was_kept_is_exported(tiny_model_folder: Path, tmp_path: Path) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, "abf")
    exported = export_student(store, run, tmp_path / "m", step="10", dtype="trained")
    assert exported.step == 10
    assert exported.source == exported.trained.folder / "kept/step-000010"
    ours, kept = (load_model(folder).state_dict() for folder in (exported.folder, exported.source))
    assert all(torch.equal(ours[name], weight) for name, weight in kept.items())
    card = (exported.folder / "README.md").read_text()
    assert "10 of the training's 30" in card
    assert "after step 10; the table lists the final students" in card
    assert "short average 71.5" in card
    result = export_student(store, run, tmp_path / "n", step="30", dtype="trained")
    assert result.step is None


@pytest.mark.parametrize(
    ("step", "by", "words"),
    [
        ("11", "short_average", "step 11 was not saved; saved are 10 and the last, 30"),
        ("best", "short_average", "step 20 was not saved"),
        ("best", "loss", "--by: 'loss' is not one of short_average"),
        ("best", "similarity", "has not measured similarity over the steps of longred-c"),
        ("first", "short_average", "'first' is not a step, `best` or `last`"),
    ],
)
def test_a_step_that_cannot_be_exported_is_told(
    step: str, by: str, words: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    store, run = trained_run(tiny_model_folder, tmp_path, "abf")
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_student(store, run, tmp_path / "m", step=step, by=by, dtype="trained")


def test_the_best_is_the_lowest_where_less_is_better(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    _, run = trained_run(tiny_model_folder, tmp_path, "abf")
    method, trained = find_student(run)
    assert find_step(run, method, trained, step="best", by="attention_kl") is None
