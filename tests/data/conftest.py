"""Corpora, recipes and data folders of a few thousand tokens."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longred.config import DataConfig

WORDS = ("model", "window", "token", "layer", "distil", "restore", "row", "step", "of", "the", "a")


def write(path: Path, *, num_documents: int, seed: int = 0) -> Path:
    """Write JSON lines of 10 to 600 words each, each document starting with a unique word."""
    rng = random.Random(seed)
    lines = []
    for number in range(num_documents):
        length = rng.choice((10, 30, 60, 90, 200, 600))
        words = [rng.choice(WORDS) for _ in range(length)]
        lines.append(json.dumps({"text": f"{seed}:{number} " + " ".join(words)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def write_corpus() -> Callable[..., Path]:
    return write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", num_documents=300)


@pytest.fixture
def make_config(corpus: Path) -> Callable[..., DataConfig]:
    """Build a data section: windows 64 and 256, short rows of 32, a corpus of JSON lines."""

    def make(**changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "sources": [{"name": "words", "kind": "files", "path": str(corpus)}],
            "num_tokens": 32768,
            "short_length": 32,
            "validation_fraction": 0.2,
            "num_held_out_tokens": 2048,
            "original_window": 64,
            "target_window": 256,
        }
        return DataConfig(**{**values, **changes})

    return make


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A data folder written by hand: 10 long, 50 short and 12 original blocks of known tokens."""
    folder = tmp_path / "data"
    (folder / "tokens").mkdir(parents=True)
    entries: dict[str, Any] = {}
    for bucket, count, length in (("long", 10, 64), ("short", 50, 8), ("original", 12, 16)):
        file = f"tokens/{bucket}.bin"
        blocks = np.arange(count)[:, None] * 100 + np.arange(length)[None, :]
        blocks.astype("<u2").tofile(folder / file)
        entries[bucket] = {
            "block_length": length,
            "num_blocks": count,
            "dtype": "uint16",
            "file": file,
        }
    # Block 3 holds documents of 10, 20 and 34 tokens; every other block is one document.
    ends = sorted({*range(64, 641, 64), 3 * 64 + 10, 3 * 64 + 30})
    np.save(folder / "tokens/long.ends.npy", np.array(ends, dtype=np.uint64))
    entries["long"]["ends"] = "tokens/long.ends.npy"
    index = {"format_version": 1, "train": entries, "held_out": {}}
    (folder / "index.json").write_text(json.dumps(index))
    return folder
