"""Freezes every question once, so that all models of a run answer exactly the same ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longred.artifacts import sha256_file, write_json
from longred.config import EvaluationConfig
from longred.data.loader import read_index as read_data_index
from longred.errors import MismatchError
from longred.evaluation import ruler, short
from longred.evaluation.prompts import count_tokens
from longred.evaluation.ruler.freeze import freeze_task, read_materials
from longred.evaluation.short.passages import Passages
from longred.evaluation.suites import load_suite
from longred.evaluation.units import FORMAT_VERSION, read_lines, write_lines
from longred.models import load_tokenizer


def freeze(
    config: EvaluationConfig, tokenizer_folder: Path, data_folder: Path, folder: Path
) -> None:
    """Write the samples of every RULER task and length and of every short task.

    The bytes of a file depend on the tokenizer, the task, its length, the seed and the held-out
    documents only; asking for another task or length changes no other file.

    Args:
        config: what is asked.
        tokenizer_folder: a model folder.
        data_folder: folder of a data artifact made with the same tokenizer.
        folder: existing folder that receives `ruler/`, `short/` and `index.json`.

    Raises:
        ConfigError: a task, suite or length cannot be used, or there is too little held-out text.
        MismatchError: the data were made with another tokenizer.
    """
    for task in config.ruler.tasks:
        ruler.check_task(task)
    suite = load_suite(config.short.suite)
    tokenizer = load_tokenizer(tokenizer_folder)
    sha256 = tokenizer_sha256(tokenizer_folder)
    if read_data_index(data_folder)["tokenizer"]["sha256"] != sha256:
        raise MismatchError(
            f"{data_folder}: was made with another tokenizer than that of {tokenizer_folder}"
        )
    documents = read_documents(data_folder)
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer_sha256": sha256,
        "seed": config.seed,
        "original_window": config.original_window,
        "num_documents": len(documents),
        "suite": config.short.suite,
        "short": {},
        "ruler": {task: {} for task in config.ruler.tasks},
    }
    passages = Passages(documents, tokenizer, window=config.original_window)
    for entry in suite:
        samples = short.make(entry.name, passages, config.short.num_samples, config.seed)
        index["short"][entry.name] = {
            **entry.to_json(),
            **_write(folder, f"short/{entry.name}.jsonl", samples, tokenizer),
            "generator_version": short.GENERATOR_VERSION,
        }
    materials = read_materials(config.ruler, [text for _, text in documents])
    for task in config.ruler.tasks:
        for length in sorted(set(config.ruler.lengths)):
            rows, found = freeze_task(
                config.ruler,
                task,
                length,
                tokenizer=tokenizer,
                seed=config.seed,
                materials=materials,
            )
            name = f"ruler/{task}-{length}.jsonl"
            index["ruler"][task][str(length)] = found | _write(folder, name, rows, tokenizer)
    write_json(folder / "index.json", index)


def _write(
    folder: Path, name: str, samples: Sequence[dict[str, Any]], tokenizer: Any
) -> dict[str, Any]:
    write_lines(folder / name, samples)
    return {
        "file": name,
        "sha256": sha256_file(folder / name),
        "num_samples": len(samples),
        "max_tokens": max(_num_tokens(sample, tokenizer) for sample in samples),
    }


def _num_tokens(sample: dict[str, Any], tokenizer: Any) -> int:
    if "choices" in sample:
        texts = [sample["input"] + choice for choice in sample["choices"]]
        return max(count_tokens(tokenizer, text) for text in texts)
    prompt = f"{sample['input']} {sample['prefix']}" if "prefix" in sample else sample["input"]
    return count_tokens(tokenizer, prompt) + int(sample["max_new_tokens"])


def tokenizer_sha256(folder: Path) -> str:
    """Return the identity of a model folder's tokenizer.

    Raises:
        MismatchError: the folder has none.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MismatchError(f"{path}: is missing")
    return sha256_file(path)


def read_documents(data_folder: Path) -> list[tuple[str, str]]:
    """Return path and text of the held-out documents of a data folder.

    Raises:
        MismatchError: the file is missing or damaged.
    """
    rows = read_lines(data_folder / "held_out" / "documents.jsonl")
    return [(str(row["path"]), str(row["text"])) for row in rows]
