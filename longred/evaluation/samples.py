"""Freezes samples: generates every prompt once, so that all models are evaluated on the same."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from longred.config import EvaluationConfig
from longred.data.layout import read_index as read_data_index
from longred.errors import MismatchError, PreflightError
from longred.evaluation import published, ruler, short
from longred.evaluation.counting import count_tokens
from longred.evaluation.model import load_for
from longred.evaluation.perplexity import freeze_rows, refuse_short_texts
from longred.evaluation.prompts import plain_prompt
from longred.evaluation.published.files import identities
from longred.evaluation.ruler.freeze import counted, freeze_task, identity
from longred.evaluation.ruler.materials import Materials, read_materials
from longred.evaluation.short.passages import Passages
from longred.evaluation.suites import SuiteTask, suite_of
from longred.evaluation.tasks import FORMAT_VERSION, NAMES, Row, read_lines, write_lines
from longred.models.hub import HUB
from longred.models.load import load_tokenizer, resolve_model
from longred.store.artifacts import Store, folder_digest, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

DOCUMENTS = "held_out/documents.jsonl"
SAMPLES_VERSION = 3

Frozen = tuple[list[Row], Row]
"""The samples of a file, and their entry in the index."""


def freeze(
    config: EvaluationConfig,
    tokenizer_folder: Path,
    data_folder: Path,
    folder: Path,
    *,
    store: Store,
) -> None:
    """Write the samples of every task, at every length of a RULER task.

    The bytes of a file depend on the tokenizer, the task, its length, the seed and the held-out
    documents only. Adding a task or length changes no other file; files in the store are reused.

    Args:
        config: configuration of the evaluation.
        tokenizer_folder: a model folder.
        data_folder: folder of a data artifact made with the same tokenizer.
        folder: existing folder that receives `ruler/`, `short/`, `perplexity/` and `index.json`.
        store: store of the files frozen so far.

    Raises:
        ConfigError: a task, suite or length cannot be used, or there is too little held-out text.
        MismatchError: the data were made with another tokenizer, or a data file is malformed.
        PreflightError: data of lm-eval are not available; names every such task.
    """
    for task in config.ruler.tasks:
        ruler.check_task(task)
    suite = suite_of(config)
    _warn_of_unused_count(config, suite)
    sha256 = tokenizer_sha256(tokenizer_folder)
    if read_data_index(data_folder)["tokenizer"]["sha256"] != sha256:
        raise MismatchError(
            f"{data_folder}: was made with another tokenizer than that of {tokenizer_folder}"
        )
    freezer = _Freezer(config, tokenizer_folder, data_folder, folder, Store(store.root))
    # Nothing is frozen for this measurement, but without text it would fail after the training.
    refuse_short_texts(freezer.texts, freezer.tokenizer, window=config.text_window)
    lengths = sorted(set(config.ruler.lengths))
    index: Row = {
        "format_version": FORMAT_VERSION,
        "tokenizer_sha256": sha256,
        "seed": config.seed,
        "original_window": config.original_window,
        "num_documents": len(freezer.documents),
        "suite": config.short.suite,
        "short": freezer.short_entries(suite),
        "ruler": {
            task: {str(length): freezer.ruler_entry(task, length) for length in lengths}
            for task in config.ruler.tasks
        },
        "perplexity": {
            str(length): freezer.long_text_entry(length)
            for length in sorted(set(config.perplexity.lengths))
        },
    }
    write_json(folder / "index.json", index)
    repeated = [
        f"{task} at {length} tokens ({entry['haystack_uses']} times)"
        for task, entries in index["ruler"].items()
        for length, entry in entries.items()
        if entry.get("haystack_uses", 1) > 1
    ]
    if repeated:
        logger.warning(
            "there is too little text to fill prompts with, so it is repeated in %s; add text with "
            "evaluation.ruler.haystack, squad or hotpot",
            ", ".join(repeated),
        )


@dataclass
class _Freezer:
    """Generates files of samples, or copies them from the store."""

    config: EvaluationConfig
    tokenizer_folder: Path
    data_folder: Path
    folder: Path
    store: Store

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer_folder, add_bos=self.config.add_bos_token)

    @cached_property
    def documents(self) -> list[tuple[str, str]]:
        return read_documents(self.data_folder)

    @cached_property
    def texts(self) -> list[str]:
        return [text for _, text in self.documents]

    @cached_property
    def passages(self) -> Passages:
        return Passages(self.documents, self.tokenizer, window=self.config.local_window)

    @cached_property
    def materials(self) -> Materials:
        return read_materials(self.config.ruler, self.texts)

    def freeze(
        self,
        name: str,
        values: Row,
        generate: Callable[[], Frozen],
        inputs: Mapping[str, str] | None = None,
    ) -> Row:
        """Write a file of samples, reusing that of the store; return its entry in the index.

        Args:
            name: the file's name in the folder of samples.
            values: everything that the samples depend on, except the tokenizer and `inputs`.
            generate: returns the samples and their entry.
            inputs: name of each further input -> its digest.
        """

        def write(folder: Path, work: Path) -> None:
            rows, entry = generate()
            write_lines(folder / "samples.jsonl", rows)
            write_json(folder / "entry.json", {**entry, "num_samples": len(rows)})

        named = {"part": "questions", **values}
        if self.config.add_bos_token is not None:
            named["add_bos_token"] = self.config.add_bos_token
        digests = {"tokenizer": tokenizer_sha256(self.tokenizer_folder), **(inputs or {})}
        artifact = self.store.build("evaluation", named, digests, write, SAMPLES_VERSION).folder
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact / "samples.jsonl", path)
        entry: Row = read_json(artifact / "entry.json")
        return {**entry, "file": name, "sha256": sha256_file(path)}

    def short_entries(self, suite: Sequence[SuiteTask]) -> dict[str, Row]:
        """Freeze the short tasks; the entry of a task whose data are unavailable says why."""
        entries: dict[str, Row] = {}
        missing: list[str] = []
        skips = self.config.short.on_missing == "skip"
        sources = {"local": self._local, "lm-eval": self._lm_eval, "published": self._published}
        for task in suite:
            common = {"capacity": task.capacity, "metric": task.metric, "chance": task.chance}
            try:
                entry = sources[task.source](task)
            except PreflightError as error:
                missing.append(str(error))
                entry = {"unavailable": str(error)}
                if skips:
                    logger.warning("%s", error)
            entries[task.name] = {**common, **entry}
        if missing and not skips:
            raise PreflightError(
                f"{len(missing)} of {len(suite)} short tasks cannot be evaluated:\n"
                + "\n".join(missing)
                + "\nor leave them out as n/a with evaluation.short.on_missing: skip"
            )
        return entries

    def _local(self, task: SuiteTask) -> Row:
        count, seed = self.config.short.num_samples, self.config.seed
        values = {
            "task": task.task,
            "num_samples": count,
            "seed": seed,
            "window": self.config.local_window,
            "generator": short.GENERATOR_VERSION,
        }

        def generate() -> Frozen:
            rows = short.make(task.task, self.passages, count, seed)
            return rows, {"max_tokens": max(_num_tokens(row, self.tokenizer) for row in rows)}

        inputs = {"documents": sha256_file(self.data_folder / DOCUMENTS)}
        return self.freeze(f"short/{task.name}.jsonl", values, generate, inputs)

    def _published(self, task: SuiteTask) -> Row:
        published.check_task(task)
        limits = [n for n in (self.config.short.limit, task.limit) if n is not None]
        limit, seed = min(limits, default=None), self.config.seed
        window = max(self.config.original_window, self.config.target_window)
        values = {
            "source": "published",
            "task": task.task,
            "settings": published.settings_of(task),
            "limit": limit,
            "seed": seed,
            "window": window,
            # Prompts must fit the window in the form for chat models too.
            "chat_template": self.tokenizer.chat_template,
            "reader": published.READER_VERSION,
        }

        def generate() -> Frozen:
            return published.freeze(task, self.tokenizer, window=window, limit=limit, seed=seed)

        name = f"short/{task.name}.jsonl"
        return self.freeze(name, values, generate, identities(task.data_files))

    def _lm_eval(self, task: SuiteTask) -> Row:
        from longred.evaluation.lm_eval_catalog import no_room
        from longred.evaluation.lm_eval_tasks import freeze_leaf

        leaves = _lm_eval_settings(task, self.config)
        window = max(self.config.original_window, self.config.target_window)
        parts: dict[str, Row] = {}
        for leaf, settings in leaves.items():
            values = {k: v for k, v in settings.items() if k not in NAMES}

            def generate(settings: Row = settings) -> Frozen:
                return freeze_leaf(settings, self.tokenizer)

            name = f"short/{task.name}/{leaf}.jsonl"
            entry = self.freeze(name, {"source": "lm-eval", **values}, generate)
            if entry["budget_tokens"] >= window:
                raise no_room(task, leaf, entry["budget_tokens"], window)
            # Longer prompts are truncated on the left, and counted.
            max_tokens = min(entry["max_tokens"], window)
            settings = {**settings, "max_tokens": max_tokens}
            parts[leaf] = {**entry, "max_tokens": max_tokens, "settings": settings}
        # A file of the user gives its task another name than the path.
        name = next(iter(parts)) if len(parts) == 1 else task.task
        return {"source": "lm-eval", "task": name, "parts": parts}

    def ruler_entry(self, task: str, length: int) -> Row:
        """Freeze a RULER task at one length."""
        config, seed, materials = self.config.ruler, self.config.seed, self.materials
        entry = self.freeze(
            f"ruler/{task}-{length}.jsonl",
            identity(config, task, length, seed=seed, materials=materials),
            lambda: freeze_task(
                config, task, length, tokenizer=self.tokenizer, seed=seed, materials=materials
            ),
        )
        return counted(config, entry)

    def long_text_entry(self, length: int) -> Row:
        """Freeze rows of held-out text, with their key tokens if there is a judge."""
        config, judge = self.config.perplexity, self.judge
        short_context = config.short_context or self.config.original_window
        values: Row = {"part_of": "perplexity", "length": length, "num_tokens": config.num_tokens}
        inputs = {"documents": sha256_file(self.data_folder / DOCUMENTS)}
        if judge is not None:
            values |= {"short_context": short_context, "dtype": self.config.dtype}
            inputs["judge"] = folder_digest(judge)

        def generate() -> Frozen:
            rows = freeze_rows(
                self.texts,
                self.tokenizer,
                length=length,
                num_tokens=config.num_tokens,
                judge=None if judge is None else partial(load_for, self.config, judge),
                short_context=short_context,
            )
            return rows, {"length": length, "has_keys": judge is not None}

        return self.freeze(f"perplexity/{length}.jsonl", values, generate, inputs)

    @cached_property
    def judge(self) -> Path | None:
        """Folder of the model that finds key tokens, if one is configured."""
        config = self.config.perplexity
        if config.judge is None:
            return None
        folder = resolve_model(
            config.judge, config.judge_revision, key="evaluation.perplexity.judge"
        )
        if tokenizer_sha256(folder) != tokenizer_sha256(self.tokenizer_folder):
            raise MismatchError(
                f"evaluation.perplexity.judge: {folder} has another tokenizer than "
                f"{self.tokenizer_folder}; choose a judge that reads the same tokens"
            )
        return folder


def _warn_of_unused_count(config: EvaluationConfig, suite: Sequence[SuiteTask]) -> None:
    """Say that `num_samples` changes nothing to those who set it and expect fewer samples."""
    short = config.short
    is_set = short.num_samples != type(short).model_fields["num_samples"].default
    if is_set and suite and short.limit is None and all(t.source != "local" for t in suite):
        logger.warning(
            "evaluation.short.num_samples: changes nothing, since %s has no local tasks; to ask "
            "fewer questions set evaluation.short.limit",
            short.suite,
        )


def _lm_eval_settings(task: SuiteTask, config: EvaluationConfig) -> dict[str, Row]:
    """Return the settings of each member; a refusal of code says too that data are missing."""
    from huggingface_hub import constants

    from longred.evaluation.lm_eval_catalog import CodeNotAllowedError, leaf_settings
    from longred.evaluation.lm_eval_tasks import build

    limit, allow_code = config.short.limit, config.short.allow_code_execution
    try:
        return leaf_settings(task, limit=limit, allow_code=allow_code)
    except CodeNotAllowedError as error:
        if task.data_files:
            raise
        HUB.probe()
        if not constants.HF_HUB_OFFLINE:
            raise
        try:
            for settings in leaf_settings(task, limit=limit, allow_code=True).values():
                build(settings)
        except PreflightError as other:
            reason = str(other).removeprefix(f"{task.name}: ")
            raise PreflightError(f"{error}; and {reason}") from other
        raise


def _num_tokens(sample: Row, tokenizer: Any) -> int:
    """Count the tokens of a sample's prompt with its longest answer."""
    if "choices" in sample:
        texts = [sample["input"] + choice for choice in sample["choices"]]
        return max(count_tokens(tokenizer, text) for text in texts)
    return count_tokens(tokenizer, plain_prompt(sample)) + int(sample["max_new_tokens"])


def tokenizer_sha256(folder: Path) -> str:
    """Return the hash of a model folder's tokenizer.

    Raises:
        MismatchError: the folder has no tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MismatchError(f"{path}: is missing")
    return sha256_file(path)


def read_documents(data_folder: Path) -> list[tuple[str, str]]:
    """Return (path, text) of the held-out documents of a data folder.

    Raises:
        MismatchError: the file is missing or damaged.
    """
    rows = read_lines(data_folder / DOCUMENTS)
    return [(str(row["path"]), str(row["text"])) for row in rows]
