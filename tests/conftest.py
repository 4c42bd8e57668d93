"""Fixtures that several areas share: a tiny random model, a Prefect server, running services."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from live import Pipeline

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads that wait for each other's core cost more than they give.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A server shares the cores too; one that is gone refuses at once.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that hold slow tests come first, so that no worker ends long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: vocabulary 512, hidden 64, 3 layers, 4 heads (2 for keys), window 64."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a server of the tests' own."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from longred.temporary_server import temporary_server

    root = tmp_path_factory.mktemp("prefect-store")
    with temporary_server(root) as server:
        server.wait()
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: root / "home"}):
            yield server.url


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Pipeline]":
    """A store with its services up; what is left of it at the end is ended."""
    # Here: the tests of a bare GPU machine load this file too, without pydantic.
    from live import Pipeline, free_ports

    made = Pipeline(tmp_path_factory.mktemp("pipeline"), free_ports())
    try:
        made.up()
        yield made
    finally:
        made.end()
