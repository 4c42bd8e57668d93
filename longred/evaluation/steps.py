"""What one evaluation consists of: units of work, finished, kept and found again one by one.

A step is named by the checkpoint, by the bytes of the questions and by the settings that can change
its answers, and by nothing else: adding a length, a task or another model redoes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.config import EvaluationConfig
from longred.data.layout import read_index as read_data_index
from longred.data.loader import read_rows
from longred.errors import MismatchError, NonFiniteLossError
from longred.evaluation.chat import is_chat
from longred.evaluation.long_text import measure
from longred.evaluation.perplexity import held_out_loss
from longred.evaluation.samples import DOCUMENTS, read_documents, tokenizer_sha256
from longred.evaluation.scoring import summary
from longred.evaluation.subject import Request, Subject
from longred.evaluation.units import Unit, read_index, read_lines, read_units, write_lines
from longred.store.artifacts import Artifact, Store, sha256_file, write_json

UNIT_VERSION = 2
"""Raised when the same model gives other answers, or other scores, to the same questions."""


@dataclass(frozen=True)
class Measured:
    """What a step found: a result, and the answers that it is made of."""

    result: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One unit of work.

    Attributes:
        key: its name in this evaluation.
        unit: the questions that it asks; None for a measurement.
        values: settings that can change the result.
        inputs: name of each input → its identity.
        make: does the work.
        num_tokens: about how many tokens are read.
    """

    key: str
    unit: Unit | None = None
    values: dict[str, Any]
    inputs: dict[str, str]
    make: Callable[[Subject], Measured]
    num_tokens: int


def plan(request: Request) -> list[Step]:
    """Return the steps of an evaluation: short tasks, then by length, then measurements.

    Raises:
        MismatchError: samples and model have different tokenizers.
    """
    if tokenizer_sha256(request.model) != read_index(request.samples)["tokenizer_sha256"]:
        raise MismatchError(
            f"{request.samples}: the samples were frozen for another tokenizer than that of "
            f"{request.model}; models that are compared share their tokenizer"
        )
    units = read_units(request.samples)
    return [*(_question(request, unit) for unit in units), *_measurements(request)]


def finish(store: Store, step: Step, subject: Subject) -> Artifact:
    """Return a step's result, doing the work only where it was never done for this checkpoint.

    Args:
        store: where finished units are kept.
        step: what is to be done.
        subject: the model.

    Raises:
        NonFiniteLossError: the model's logits are NaN; names model and step.
    """

    def make(folder: Path, work: Path) -> None:
        try:
            measured = step.make(subject)
        except NonFiniteLossError as error:
            place = f"{subject.request.name}: {step.key}"
            raise NonFiniteLossError(f"{place}: {error}; what is finished is kept") from error
        write_json(folder / "result.json", measured.result)
        write_lines(folder / "answers.jsonl", measured.answers)

    values = {"part": "unit", **step.values}
    # A store that records a run's stages would take a unit for one of them.
    return Store(store.root).build("evaluation", values, step.inputs, make, UNIT_VERSION)


def _question(request: Request, unit: Unit) -> Step:
    config = request.config
    chat = is_chat(config.chat_template, request.original)
    return Step(
        key=unit.key,
        unit=unit,
        values={
            **unit.identity(),
            "dtype": config.dtype,
            "chat_template": chat and unit.metric != "choice",
            **({} if config.backend == "hf" or unit.metric == "choice" else _by(config)),
        },
        inputs={"checkpoint": request.checkpoint, "samples": unit.sha256},
        make=lambda subject: _ask(subject, unit),
        num_tokens=unit.max_tokens * unit.num_samples,
    )


def _by(config: EvaluationConfig) -> dict[str, str]:
    return {"backend": config.backend}


def parity(request: Request) -> Step | None:
    """Return the step that must be finished before vLLM answers, if it is to answer anything."""
    generated = [unit for unit in read_units(request.samples) if _is_ours(unit)]
    if request.config.backend == "hf" or not generated:
        return None
    unit = min(generated, key=lambda unit: unit.max_tokens)

    def make(subject: Subject) -> Measured:
        from longred.evaluation.vllm import check_parity

        return Measured(check_parity(subject.reference, subject.examinee, unit))

    return Step(
        key="parity",
        values={"measure": "parity", "dtype": request.config.dtype, **_by(request.config)},
        inputs={"checkpoint": request.checkpoint, "samples": unit.sha256},
        make=make,
        num_tokens=unit.max_tokens * unit.num_samples,
    )


def _is_ours(unit: Unit) -> bool:
    return unit.source == "local" and unit.metric != "choice"


def _ask(subject: Subject, unit: Unit) -> Measured:
    if unit.source == "lm-eval":
        from longred.evaluation.harness import ask_harness

        return Measured(*ask_harness(subject.examinee, unit))
    from longred.evaluation.benchmarks import ask

    answers = ask(subject.examinee, unit)
    return Measured(summary(answers, unit.chance), answers)


def _measurements(request: Request) -> list[Step]:
    config = request.config
    index = read_data_index(request.data)["held_out"]["short"]
    common = {"dtype": config.dtype, "num_tokens": config.similarity_tokens}
    texts = {"documents": sha256_file(request.data / DOCUMENTS)}
    rows = {"rows": sha256_file(request.data / index["file"])}
    both = {"checkpoint": request.checkpoint, "original": request.original_digest}
    lengths = read_index(request.samples).get("perplexity", {})
    return [
        *(_long_text(request, length, entry) for length, entry in lengths.items()),
        Step(
            key="held_out",
            values={"measure": "held_out", "window": config.original_window, **common},
            inputs={"checkpoint": request.checkpoint, **texts},
            make=_held_out,
            num_tokens=config.similarity_tokens,
        ),
        Step(
            key="similarity",
            values={"measure": "drift", **common},
            inputs={**both, **rows},
            make=_drift,
            num_tokens=2 * config.similarity_tokens,
        ),
    ]


def _long_text(request: Request, length: str, entry: Mapping[str, Any]) -> Step:
    num_bins = request.config.perplexity.num_bins
    path = request.samples / entry["file"]

    def make(subject: Subject) -> Measured:
        return Measured(measure(subject.model, read_lines(path), num_bins=num_bins))

    return Step(
        key=f"perplexity-{length}",
        values={"measure": "perplexity", "dtype": request.config.dtype, "num_bins": num_bins},
        inputs={"checkpoint": request.checkpoint, "samples": entry["sha256"]},
        make=make,
        num_tokens=int(length) * int(entry["num_samples"]),
    )


def _held_out(subject: Subject) -> Measured:
    return Measured(
        held_out_loss(
            subject.model,
            subject.tokenizer,
            [text for _, text in read_documents(subject.request.data)],
            window=subject.config.original_window,
            num_tokens=subject.config.similarity_tokens,
            batch_rows=subject.config.batch_size,
        )
    )


def _drift(subject: Subject) -> Measured:
    from longred.profiling.drift import profile_drift

    request = subject.request
    subject.release()
    rows_NT = read_rows(
        request.data, "short", split="held_out", num_tokens=subject.config.similarity_tokens
    )
    drift = profile_drift(
        subject.load(request.original),
        subject.load(request.model),
        rows_NT,
        batch_rows=subject.config.batch_size,
    )
    per_layer, kl = drift.hidden_similarity, drift.attention_kl
    return Measured(
        {
            "per_layer": per_layer,
            "last": per_layer[-1],
            "mean": sum(per_layer) / len(per_layer),
            "attention_kl": sum(kl) / len(kl),
            "num_tokens": rows_NT.numel(),
            "drift": drift.to_json(),
        }
    )
