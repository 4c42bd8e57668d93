"""Freezes every question once, so that all models of a run answer exactly the same ones."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from longred.config import EvaluationConfig
from longred.data.layout import read_index as read_data_index
from longred.errors import MismatchError, PreflightError
from longred.evaluation import ruler, short
from longred.evaluation.long_text import freeze_rows
from longred.evaluation.prompts import count_tokens
from longred.evaluation.ruler.freeze import freeze_task, identity
from longred.evaluation.ruler.materials import Materials, read_materials
from longred.evaluation.short.passages import Passages
from longred.evaluation.suites import SuiteTask, load_suite
from longred.evaluation.units import FORMAT_VERSION, read_lines, write_lines
from longred.models.load import choose_device, load_model, load_tokenizer, resolve_model
from longred.store.artifacts import Store, folder_digest, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

DOCUMENTS = "held_out/documents.jsonl"
QUESTIONS_VERSION = 1

Entry = dict[str, Any]
Row = dict[str, Any]


def suite_of(config: EvaluationConfig) -> list[SuiteTask]:
    """Return the short tasks that are asked.

    Raises:
        ConfigError: suite, capacity or task are unknown.
    """
    short_ = config.short
    return load_suite(short_.suite, capacities=short_.capacities, tasks=short_.tasks)


def freeze(
    config: EvaluationConfig,
    tokenizer_folder: Path,
    data_folder: Path,
    folder: Path,
    *,
    store: Store,
) -> None:
    """Write the samples of every task, and of every length where it has several.

    The bytes of a file depend on the tokenizer, the task, its length, the seed and the held-out
    documents only; asking for another task or length changes no other file, and makes none again
    that the store has.

    Args:
        config: what is asked.
        tokenizer_folder: a model folder.
        data_folder: folder of a data artifact made with the same tokenizer.
        folder: existing folder that receives `ruler/`, `short/`, `perplexity/` and `index.json`.
        store: where the files made so far are kept.

    Raises:
        ConfigError: a task, suite or length cannot be used, or there is too little held-out text.
        MismatchError: the data were made with another tokenizer, or a data file is malformed.
        PreflightError: data of the harness cannot be had; names every such task.
    """
    for task in config.ruler.tasks:
        ruler.check_task(task)
    suite = suite_of(config)
    sha256 = tokenizer_sha256(tokenizer_folder)
    if read_data_index(data_folder)["tokenizer"]["sha256"] != sha256:
        raise MismatchError(
            f"{data_folder}: was made with another tokenizer than that of {tokenizer_folder}"
        )
    maker = _Maker(config, tokenizer_folder, data_folder, folder, Store(store.root))
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer_sha256": sha256,
        "seed": config.seed,
        "original_window": config.original_window,
        "num_documents": len(maker.documents),
        "suite": config.short.suite,
        "short": maker.short_entries(suite),
        "ruler": {
            task: {str(n): maker.ruler_entry(task, n) for n in sorted(set(config.ruler.lengths))}
            for task in config.ruler.tasks
        },
        "perplexity": {
            str(n): maker.long_text_entry(n) for n in sorted(set(config.perplexity.lengths))
        },
    }
    write_json(folder / "index.json", index)
    _note_repeated(index["ruler"])


def _note_repeated(entries: Mapping[str, Mapping[str, Entry]]) -> None:
    """Say where a prompt holds the same text several times, since there is not enough of it."""
    found = [
        f"{task} at {length} tokens ({entry['haystack_uses']} times)"
        for task, lengths in entries.items()
        for length, entry in lengths.items()
        if entry.get("haystack_uses", 1) > 1
    ]
    if found:
        logger.warning(
            "there is too little text to fill prompts with, so it is repeated in %s; give more by "
            "evaluation.ruler.haystack, squad or hotpot",
            ", ".join(found),
        )


@dataclass
class _Maker:
    """Makes files of questions, or finds them in the store."""

    config: EvaluationConfig
    tokenizer_folder: Path
    data_folder: Path
    folder: Path
    store: Store

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer_folder)

    @cached_property
    def documents(self) -> list[tuple[str, str]]:
        return read_documents(self.data_folder)

    @cached_property
    def passages(self) -> Passages:
        return Passages(self.documents, self.tokenizer, window=self.config.original_window)

    def keep(
        self,
        name: str,
        values: Row,
        make: Callable[[], tuple[list[Row], Entry]],
        inputs: Mapping[str, str] | None = None,
    ) -> Entry:
        """Return the entry of a file of questions, making it where the store does not have it.

        Args:
            name: the file's name among the samples.
            values: everything that the questions depend on, but for the tokenizer and `inputs`.
            make: returns the questions and what the index says of them.
            inputs: further inputs and their identity.
        """

        def write(folder: Path, work: Path) -> None:
            rows, entry = make()
            write_lines(folder / "samples.jsonl", rows)
            write_json(folder / "entry.json", {**entry, "num_samples": len(rows)})

        known = {"tokenizer": tokenizer_sha256(self.tokenizer_folder), **(inputs or {})}
        named = {"part": "questions", **values}
        made = self.store.build("evaluation", named, known, write, QUESTIONS_VERSION).folder
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / "samples.jsonl", path)
        entry: Entry = read_json(made / "entry.json")
        return {**entry, "file": name, "sha256": sha256_file(path)}

    def short_entries(self, suite: Sequence[SuiteTask]) -> dict[str, Entry]:
        """Return the entries of the short tasks; those that cannot be had say why."""
        entries: dict[str, Entry] = {}
        missing: list[str] = []
        for task in suite:
            common = {"capacity": task.capacity, "metric": task.metric, "chance": task.chance}
            try:
                made = self._local(task) if task.source == "local" else self._harness(task)
            except PreflightError as error:
                missing.append(str(error))
                made = {"unavailable": str(error)}
                logger.warning("%s", error)
            entries[task.name] = {**common, **made}
        if missing and self.config.short.on_missing == "error":
            raise PreflightError(
                f"{len(missing)} of {len(suite)} short tasks cannot be asked:\n"
                + "\n".join(missing)
                + "\nor leave them out as n/a with evaluation.short.on_missing: skip"
            )
        return entries

    def _local(self, task: SuiteTask) -> Entry:
        count, seed = self.config.short.num_samples, self.config.seed
        values = {
            "task": task.task,
            "num_samples": count,
            "seed": seed,
            "window": self.config.original_window,
            "generator": short.GENERATOR_VERSION,
        }

        def make() -> tuple[list[Row], Entry]:
            rows = short.make(task.task, self.passages, count, seed)
            return rows, {"max_tokens": self._longest(rows)}

        texts = {"documents": sha256_file(self.data_folder / DOCUMENTS)}
        return self.keep(f"short/{task.name}.jsonl", values, make, texts)

    def _harness(self, task: SuiteTask) -> Entry:
        from longred.evaluation import harness

        chosen = self.config.short
        leaves = harness.leaf_settings(
            task, limit=chosen.limit, allow_code=chosen.allow_code_execution
        )
        cap = max(self.config.original_window, self.config.target_window)
        parts: dict[str, Entry] = {}
        for leaf, settings in leaves.items():
            values = {k: v for k, v in settings.items() if k != "data_files"}

            def make(settings: Row = settings) -> tuple[list[Row], Entry]:
                return harness.freeze_leaf(settings, self.tokenizer)

            name = f"short/{task.name}/{leaf}.jsonl"
            entry = self.keep(name, {"source": "lm-eval", **values}, make)
            if entry["budget_tokens"] >= cap:
                raise PreflightError(
                    f"{leaf}: answers take {entry['budget_tokens']} tokens, which leaves no room "
                    f"for a question in {cap}, the largest window"
                )
            # What does not fit the windows is cut on the left, and counted.
            parts[leaf] = {**entry, "max_tokens": min(entry["max_tokens"], cap)}
            parts[leaf]["settings"] = {**settings, "max_tokens": parts[leaf]["max_tokens"]}
        return {"source": "lm-eval", "task": task.task, "parts": parts}

    @cached_property
    def materials(self) -> Materials:
        return read_materials(self.config.ruler, [text for _, text in self.documents])

    def ruler_entry(self, task: str, length: int) -> Entry:
        config, seed = self.config.ruler, self.config.seed
        values = identity(config, task, length, seed=seed, materials=self.materials)

        def make() -> tuple[list[Row], Entry]:
            return freeze_task(
                config,
                task,
                length,
                tokenizer=self.tokenizer,
                seed=seed,
                materials=self.materials,
            )

        return self.keep(f"ruler/{task}-{length}.jsonl", values, make)

    def long_text_entry(self, length: int) -> Entry:
        config = self.config.perplexity
        values: Row = {"part_of": "perplexity", "length": length, "num_tokens": config.num_tokens}
        inputs = {"documents": sha256_file(self.data_folder / DOCUMENTS)}
        judge = self.judge
        context = config.short_context or self.config.original_window
        if judge is not None:
            values |= {"short_context": context, "dtype": self.config.dtype}
            inputs["judge"] = folder_digest(judge)

        def make() -> tuple[list[Row], Entry]:
            texts = [text for _, text in self.documents]
            rows = freeze_rows(
                texts,
                self.tokenizer,
                length=length,
                num_tokens=config.num_tokens,
                judge=None if judge is None else partial(self._load_judge, judge),
                short_context=context,
            )
            return rows, {"length": length, "has_keys": judge is not None}

        return self.keep(f"perplexity/{length}.jsonl", values, make, inputs)

    @cached_property
    def judge(self) -> Path | None:
        """Folder of the model that tells key tokens, if there is one."""
        config = self.config.perplexity
        if config.judge is None:
            return None
        folder = resolve_model(config.judge, config.judge_revision)
        if tokenizer_sha256(folder) != tokenizer_sha256(self.tokenizer_folder):
            raise MismatchError(
                f"evaluation.perplexity.judge: {folder} has another tokenizer than "
                f"{self.tokenizer_folder}; choose a judge that reads the same tokens"
            )
        return folder

    def _load_judge(self, folder: Path) -> Any:
        return load_model(
            folder,
            dtype=getattr(torch, self.config.dtype),
            device=choose_device(self.config.device),
            backend=self.config.attention_backend,
        )

    def _longest(self, rows: Sequence[Row]) -> int:
        return max(_num_tokens(row, self.tokenizer) for row in rows)


def _num_tokens(sample: Mapping[str, Any], tokenizer: Any) -> int:
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
    rows = read_lines(data_folder / DOCUMENTS)
    return [(str(row["path"]), str(row["text"])) for row in rows]
