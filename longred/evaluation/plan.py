"""Plans the evaluation of one model as task runs, and finishes each run at most once.

A run is one task, or one measurement without samples of its own, of one model. Its result is an
artifact identified by the checkpoint, the samples and the settings that can change the result, and
by nothing else: adding a length, a task or another model repeats nothing.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longred.data.layout import read_index as read_data_index
from longred.data.loader import read_rows
from longred.errors import MismatchError, NonFiniteLossError
from longred.evaluation.model import EvaluatedModel
from longred.evaluation.perplexity import held_out_loss, measure
from longred.evaluation.results import Result, summary
from longred.evaluation.samples import DOCUMENTS, read_documents, tokenizer_sha256
from longred.evaluation.tasks import Row, Task, read_index, read_lines, read_tasks, write_lines
from longred.store.artifacts import Store, sha256_file, write_json

log = logging.getLogger(__name__)

PARITY_TASKS = 5
"""Tasks on which vLLM is compared with transformers, those with the shortest prompts."""

RESULT_VERSION = 4
"""Raise it when the same model gives other answers or other scores for the same samples."""


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """One task of one model.

    Attributes:
        key: unique name within the evaluation.
        model: the model under evaluation.
        task: the task; None for a measurement.
        values: settings that can change the result, beside the dtype.
        inputs: name of each input -> its digest, beside the checkpoint.
        num_tokens: approximate number of tokens to process.
        compute: computes the result.
    """

    key: str
    model: EvaluatedModel
    task: Task | None = None
    values: Row
    inputs: dict[str, str]
    num_tokens: int
    compute: Callable[[EvaluatedModel], Result]

    def is_finished(self, store: Store) -> bool:
        """Return whether the store has the result."""
        digest = store.digest("evaluation", *self._identity(), RESULT_VERSION)
        return store.find("evaluation", digest) is not None

    def finish(self, store: Store) -> Path:
        """Compute the result unless the store has it; return the folder of the artifact.

        The folder holds `result.json` and `answers.jsonl`.

        Raises:
            NonFiniteLossError: the model's logits are NaN; names model and run.
        """

        def make(folder: Path, work: Path) -> None:
            try:
                result = self.compute(self.model)
            except NonFiniteLossError as error:
                raise NonFiniteLossError(
                    f"{self.model.name}: {self.key}: {error}; finished results are saved"
                ) from error
            write_json(folder / "result.json", result.scores)
            write_lines(folder / "answers.jsonl", result.answers)

        # A store that records the stages of a run would record this result as a stage.
        plain = Store(store.root)
        return plain.build("evaluation", *self._identity(), make, RESULT_VERSION).folder

    def _identity(self) -> tuple[Row, dict[str, str]]:
        """Return the settings and inputs that identify the artifact."""
        values = {"part": "unit", "dtype": self.model.config.dtype, **self.values}
        if self.model.config.add_bos_token is not None:
            values["add_bos_token"] = self.model.config.add_bos_token
        return values, {"checkpoint": self.model.checkpoint, **self.inputs}


def plan(model: EvaluatedModel) -> list[TaskRun]:
    """Return the runs of an evaluation: short tasks, RULER by length, then measurements.

    Raises:
        MismatchError: samples and model have different tokenizers.
    """
    index = read_index(model.samples)
    if tokenizer_sha256(model.model) != index["tokenizer_sha256"]:
        raise MismatchError(
            f"{model.samples}: the samples were frozen for another tokenizer than that of "
            f"{model.model}; compared models must share their tokenizer"
        )
    long_texts = index.get("perplexity", {})
    return [
        *(_task_run(model, task) for task in read_tasks(model.samples)),
        *(_long_text_run(model, length, entry) for length, entry in long_texts.items()),
        *_original_window_runs(model),
    ]


def parity_run(model: EvaluatedModel) -> TaskRun | None:
    """Return the check of vLLM against transformers; None if vLLM will generate no local task."""
    if model.config.backend == "hf" or model.reindexing:
        return None
    all_tasks = read_tasks(model.samples)
    tasks = [t for t in all_tasks if t.source == "local" and t.metric != "choice"]
    if not tasks:
        if any(task.source == "lm-eval" for task in all_tasks):
            log.warning(
                "evaluation.backend: the answers of vllm to tasks of lm-eval are not compared with "
                "those of transformers; add tasks of RULER, on which both are compared"
            )
        return None
    tasks = sorted(tasks, key=lambda task: task.max_tokens)[:PARITY_TASKS]

    def compute(model: EvaluatedModel) -> Result:
        from longred.evaluation.vllm import check_parity

        # First vLLM, which takes a share of the whole memory; batches fill what it leaves.
        engine = model.lm
        return Result(check_parity(model.transformers_lm, engine, tasks))

    values: Row = {"measure": "parity", "backend": model.config.backend}
    values["chat_template"] = model.is_chat
    inputs = {f"samples/{task.key}": task.sha256 for task in tasks}
    run = _task_run(model, tasks[0])
    return replace(run, key="parity", task=None, values=values, inputs=inputs, compute=compute)


def _task_run(model: EvaluatedModel, task: Task) -> TaskRun:
    is_generated = task.metric != "choice"
    values = {**task.identity(), "chat_template": model.is_chat and is_generated}
    if model.config.backend != "hf" and is_generated:
        values["backend"] = model.config.backend
    return TaskRun(
        key=task.key,
        model=model,
        task=task,
        values=values,
        inputs={"samples": task.sha256},
        num_tokens=task.max_tokens * task.num_samples,
        compute=lambda model: _run_task(model, task),
    )


def _run_task(model: EvaluatedModel, task: Task) -> Result:
    if task.source == "lm-eval":
        from longred.evaluation.lm_eval_tasks import run_lm_eval_task

        return run_lm_eval_task(model.lm, task)
    from longred.evaluation.own_tasks import run_own_task

    answers = run_own_task(model.lm, task)
    return Result(summary(answers, task.chance), answers)


def _long_text_run(model: EvaluatedModel, length: str, entry: Mapping[str, Any]) -> TaskRun:
    num_bins = model.config.perplexity.num_bins
    path = model.samples / entry["file"]
    return TaskRun(
        key=f"perplexity-{length}",
        model=model,
        values={"measure": "perplexity", "num_bins": num_bins},
        inputs={"samples": entry["sha256"]},
        num_tokens=int(length) * int(entry["num_samples"]),
        compute=lambda model: Result(measure(model.loaded, read_lines(path), num_bins=num_bins)),
    )


def _original_window_runs(model: EvaluatedModel) -> list[TaskRun]:
    """Return the measurements on held-out text within the original window.

    A model that is evaluated alone is compared with none, and neither is the original at other
    positions: its weights are the original's, and its differences are in none of the captured
    queries and keys.
    """
    window, num_tokens = model.config.text_window, model.config.similarity_tokens
    rows = model.data / read_data_index(model.data)["held_out"]["short"]["file"]
    is_original = model.checkpoint == model.original_digest
    is_compared = not model.reindexing and (not is_original or model.name == "original")
    runs = [
        TaskRun(
            key="held_out",
            model=model,
            values={"measure": "held_out", "window": window, "num_tokens": num_tokens},
            inputs={"documents": sha256_file(model.data / DOCUMENTS)},
            num_tokens=num_tokens,
            compute=_held_out,
        ),
        TaskRun(
            key="similarity",
            model=model,
            values={"measure": "drift", "num_tokens": num_tokens},
            inputs={"original": model.original_digest, "rows": sha256_file(rows)},
            num_tokens=2 * num_tokens,
            compute=_drift,
        ),
    ]
    return runs if is_compared else runs[:1]


def _held_out(model: EvaluatedModel) -> Result:
    return Result(
        held_out_loss(
            model.loaded,
            model.tokenizer,
            [text for _, text in read_documents(model.data)],
            window=model.config.text_window,
            num_tokens=model.config.similarity_tokens,
            batch_rows=model.rows_of(model.config.text_window),
        )
    )


def _drift(model: EvaluatedModel) -> Result:
    """Measure the similarity of hidden states and attention to those of the original model."""
    from longred.profiling.drift import profile_drift

    model.release()
    rows_NT = read_rows(
        model.data, "short", split="held_out", num_tokens=model.config.similarity_tokens
    )
    drift = profile_drift(
        model.load(model.original),
        model.load(model.model),
        rows_NT,
        batch_rows=model.rows_of(rows_NT.shape[1]),
    )
    per_layer, kl = drift.hidden_similarity, drift.attention_kl
    return Result(
        {
            "per_layer": per_layer,
            "last": per_layer[-1],
            "mean": sum(per_layer) / len(per_layer),
            "attention_kl": sum(kl) / len(kl),
            "num_tokens": rows_NT.numel(),
            "drift": drift.to_json(),
        }
    )
