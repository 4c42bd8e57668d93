"""A small data folder and frozen samples for the tiny random model."""

import argparse
import ast
import csv
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longred.config import EvaluationConfig
from longred.evaluation.model import EvaluatedModel
from longred.store.artifacts import Store, sha256_file

WINDOW = 224


@pytest.fixture(scope="session")
def tokenizer(tiny_model_folder: Path) -> Any:
    from longred.models.load import load_tokenizer

    return load_tokenizer(tiny_model_folder)


@pytest.fixture(scope="session")
def documents() -> list[tuple[str, str]]:
    modules = (argparse, ast, csv, json, textwrap)
    return [(m.__name__, Path(str(m.__file__)).read_text(encoding="utf-8")) for m in modules]


@pytest.fixture(scope="session")
def data_folder(
    tiny_model_folder: Path,
    tokenizer: Any,
    documents: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "held_out").mkdir()
    with (folder / "held_out" / "documents.jsonl").open("w", encoding="utf-8") as file:
        for path, text in documents:
            row = {"id": path, "source": "library", "path": path, "text": text}
            file.write(json.dumps(row) + "\n")
    ids = tokenizer(documents[0][1], add_special_tokens=False, verbose=False)["input_ids"]
    blocks = np.array(ids[: 16 * 32], dtype="<u2").reshape(16, 32)
    (folder / "held_out" / "short.bin").write_bytes(blocks.tobytes())
    index = {
        "format_version": 1,
        "tokenizer": {"sha256": sha256_file(tiny_model_folder / "tokenizer.json")},
        "held_out": {
            "short": {
                "block_length": 32,
                "num_blocks": 16,
                "dtype": "uint16",
                "file": "held_out/short.bin",
            }
        },
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def evaluation_config(**changes: Any) -> EvaluationConfig:
    values: dict[str, Any] = {
        "ruler": {
            "tasks": ["niah_single_1", "niah_single_2"],
            "haystack": "held_out",
            "lengths": [384, 512],
            "num_samples": 3,
        },
        "short": {"suite": "demo", "num_samples": 4},
        "similarity_tokens": 512,
        "original_window": WINDOW,
        "target_window": 512,
        "batch_tokens": 4000,
        # In bfloat16 a random model often has two likeliest tokens, and sums decide.
        "dtype": "float32",
        "device": "cpu",
    }
    return EvaluationConfig.model_validate({**values, **changes})


@pytest.fixture(scope="session")
def config() -> EvaluationConfig:
    return evaluation_config()


@pytest.fixture(scope="session")
def samples_folder(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    data_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    from longred.evaluation.samples import freeze

    folder = tmp_path_factory.mktemp("samples")
    store = Store(tmp_path_factory.mktemp("samples-store"))
    freeze(config, tiny_model_folder, data_folder, folder, store=store)
    return folder


@pytest.fixture(scope="session")
def evaluated_model(tiny_model_folder: Path, samples_folder: Path, data_folder: Path) -> Any:
    def make(config: EvaluationConfig, **changes: Any) -> EvaluatedModel:
        values = {
            "config": config,
            "name": "original",
            "model": tiny_model_folder,
            "checkpoint": "c0ffee",
            "original": tiny_model_folder,
            "original_digest": "c0ffee",
            "samples": samples_folder,
            "data": data_folder,
        }
        return EvaluatedModel(**{**values, **changes})

    return make
