"""Measure one model: loss by position, short sets, similarity to the original, RULER."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gpu.child import Check, Skip
from gpu.sizes import speeds_of

from longred.cost.machine import peak_bytes
from longred.cost.speeds import Speeds, key_of
from longred.data.loader import read_rows
from longred.evaluation import perplexity
from longred.evaluation.local_lm import LocalLM
from longred.evaluation.own_tasks import run_own_task
from longred.evaluation.results import summary
from longred.evaluation.tasks import Row, Task, write_lines
from longred.models.load import load_model, load_tokenizer
from longred.profiling.drift import profile_drift
from longred.store.artifacts import sha256_file
from real import estimates, short
from real.inputs import METHODS, Inputs, dtype_of

ROW_TOKENS = 16384
"""Most tokens of the rows of text whose similarity is measured at a time."""


def measure(check: Check, folder: str, model: str, kind: str) -> None:
    """Measure a model: `quick`, or the first (`ruler`) or remaining (`more`) samples of RULER."""
    inputs = Inputs(Path(folder))
    if model in METHODS and not inputs.place(model).is_dir():
        raise Skip(f"there is no student of {model}: its training did not end")
    one = _Model(check, inputs, model)
    if kind == "quick":
        one.losses()
        one.short_sets()
        one.similarity()
    else:
        first = inputs.values["first_samples"]
        last = inputs.values["samples"]
        one.ruler(*((0, first) if kind == "ruler" else (first, last)))


class _Model:
    """A loaded model, and where its measurements go."""

    def __init__(self, check: Check, inputs: Inputs, model: str) -> None:
        self.check, self.inputs, self.name = check, inputs, model
        self.device = torch.device(check.device_type)
        self.model = self._load(model)
        self.settings = {"dtype": str(dtype_of(check)).removeprefix("torch.")}

    def _load(self, name: str, dtype: torch.dtype | None = None) -> Any:
        return load_model(
            self.inputs.place(name),
            dtype=dtype or dtype_of(self.check),
            device=self.device,
            original=self.inputs.place("original"),
        )

    @cached_property
    def lm(self) -> LocalLM:
        """The model, answering."""
        return LocalLM(
            self.model,
            load_tokenizer(self.inputs.place("original")),
            max_tokens=self.inputs.values["target_window"],
            is_chat=self.inputs.values["is_chat"],
        )

    @cached_property
    def speeds(self) -> Speeds | None:
        """The published rates of this GPU; None if it is unknown."""
        if self.check.tiny or not key_of(torch.cuda.get_device_name()):
            return None
        return speeds_of(self.check)

    def _write(
        self, name: str, started: float, measured: Row, planned: float | None = None, **more: Any
    ) -> None:
        """Write a line with the seconds since `started` and the peak memory."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        measured = {**measured, "seconds": seconds, "peak_bytes": peak_bytes(self.device)}
        if "num_tokens" in measured:
            measured["tokens_per_second"] = measured["num_tokens"] / seconds
        self.check.line(
            name,
            settings={**self.settings, **more.pop("settings", {})},
            measured=measured,
            planned={} if planned is None else {"seconds": planned},
            timed_once=True,
            **more,
        )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def losses(self) -> None:
        """Measure the loss by position at every length."""
        shape, bins = self.inputs.shape, self.inputs.values["num_bins"]
        for length in self.inputs.lengths:
            rows, started = self.inputs.loss_rows(length), time.perf_counter()
            found = perplexity.measure(self.model, rows, num_bins=bins)
            planned = None
            if self.speeds:
                planned = estimates.reading(shape, length, length * len(rows), self.speeds)
            self._write(f"loss-{length}", started, found, planned, settings={"rows": len(rows)})

    def short_sets(self) -> None:
        """Score all short sets."""
        for task in self.inputs.tasks("short"):
            started = time.perf_counter()
            scores = summary(run_own_task(self.lm, task), task.chance)
            self._write(f"short-{task.name}", started, scores)
        for name, entry in self.inputs.values["requests"].items():
            rows, started = self.inputs.requests(name), time.perf_counter()
            scores = summary(short.score(self.lm, rows), entry["chance"])
            self._write(f"short-{name}", started, scores)

    def similarity(self) -> None:
        """Compare hidden states and attention with the original's on short rows, in float32.

        So did the profile, whose compiled kernels are used again.
        """
        if self.name == "original":
            return
        rows_NT = read_rows(
            self.inputs.joined / "data",
            "short",
            split="held_out",
            num_tokens=self.inputs.values["similarity_tokens"],
        )
        started = time.perf_counter()
        drift = profile_drift(
            self._load("original", torch.float32),
            self._load(self.name, torch.float32),
            rows_NT,
            batch_rows=max(1, ROW_TOKENS // rows_NT.shape[1]),
        )
        cosines, kl = drift.hidden_similarity, drift.attention_kl
        measured = {
            "last": cosines[-1],
            "mean": sum(cosines) / len(cosines),
            "attention_kl": sum(kl) / len(kl),
            "num_tokens": rows_NT.numel(),
        }
        settings = {"dtype": "float32"}
        self._write("similarity", started, measured, per_layer=cosines, settings=settings)

    def ruler(self, first: int, last: int) -> None:
        """Answer some samples of all RULER tasks, those of one length together."""
        tasks = self.inputs.tasks("ruler")
        for length in self.inputs.lengths if first < last else ():
            chosen = [task for task in tasks if task.length == length]
            started = time.perf_counter()
            scores = {}
            for metric in sorted({task.metric for task in chosen}):
                alike = [task for task in chosen if task.metric == metric]
                scores |= self._answered(alike, first, last)
            planned = None
            names = [task.name for task in chosen]
            if self.speeds:
                count = last - first
                shape = self.inputs.shape
                planned = estimates.ruler(shape, length, names, count, self.speeds)
            measured = {
                "score": sum(each["score"] for each in scores.values()) / len(scores),
                "num_tokens": sum(each.pop("num_prompt_tokens") for each in scores.values()),
            }
            settings = {"first": first, "last": last}
            self._write(str(length), started, measured, planned, tasks=scores, settings=settings)

    def _answered(self, tasks: Sequence[Task], first: int, last: int) -> dict[str, Row]:
        """Run samples of tasks with a common metric as one task, so that they share batches."""
        samples = {task.name: task.read_samples()[first:last] for task in tasks}
        rows = [
            {**row, "id": f"{name}/{row['id']}"} for name, rows in samples.items() for row in rows
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.jsonl"
            write_lines(path, rows)
            together = replace(
                tasks[0],
                path=path,
                sha256=sha256_file(path),
                num_samples=len(rows),
                max_tokens=max(task.max_tokens for task in tasks),
            )
            answers = run_own_task(self.lm, together)
        found = {}
        for task in tasks:
            own = [row for row in answers if row["id"].startswith(f"{task.name}/")]
            scores = summary(own, task.chance)
            scores["num_prompt_tokens"] = sum(row["num_tokens"] for row in samples[task.name])
            found[task.name] = scores
        return found
