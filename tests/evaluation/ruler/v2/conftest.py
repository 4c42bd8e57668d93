"""MMLU's questions from files, and a function that generates samples of RULER v2."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from v2_oracles import mmlu_rows

from longred.evaluation import ruler
from longred.evaluation.ruler.questions import Questions
from longred.evaluation.ruler.rows import Source
from longred.evaluation.ruler.v2.mmlu import read_mmlu

Make = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def mmlu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmlu")
    for split, rows in mmlu_rows().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def mmlu(mmlu_folder: Path) -> Questions:
    return read_mmlu(Source(key="evaluation.ruler.mmlu", path=str(mmlu_folder)))


@pytest.fixture(scope="session")
def make(tokenizers: dict[str, Any], mmlu: Questions) -> Make:
    @cache
    def make(
        task: str, n: int = 2, length: int = 4096, kind: str = "bpe", **settings: Any
    ) -> list[dict[str, Any]]:
        settings = {"qa": mmlu if ruler.TASKS[task].questions == "mmlu" else None, **settings}
        return ruler.generate(
            task,
            length=length,
            num_samples=n,
            **{"seed": 0, "tokenizer": tokenizers[kind], **settings},
        )

    return make
