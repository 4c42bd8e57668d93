"""Answers by vLLM, which must first show on fifty questions that it answers as transformers does.

It generates; likelihoods and measurements stay with transformers, where logits are bounded.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from longred.errors import ConfigError, PreflightError
from longred.evaluation.benchmarks import ask
from longred.evaluation.examinee import Examinee, padded
from longred.evaluation.units import Unit, write_lines
from longred.store.artifacts import sha256_file

PARITY_SAMPLES = 50
MIN_SAME_SHARE = 0.9
"""Answers that must be the same to the letter; kernels that sum in another order break ties."""
MAX_POINTS = 2.0
"""Percentage points by which the scores may differ."""


class Engine(Protocol):
    """What continues prompts, greedily."""

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]
    ) -> list[list[int]]:
        """Return the tokens that follow each prompt, up to EOS, a stop text or `max_tokens`."""


class VllmEngine:
    """A model folder in vLLM, on one GPU.

    Args:
        folder: Hugging Face folder.
        max_tokens: the longest prompt with its answer; may exceed the model's own window.
        window: the model's own window.
        dtype: `float32` or `bfloat16`.
        memory_fraction: share of the GPU's memory that vLLM takes at once.

    Raises:
        PreflightError: vLLM is not installed.
    """

    def __init__(
        self, folder: Path, *, max_tokens: int, window: int, dtype: str, memory_fraction: float
    ) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise PreflightError(
                f"evaluation.backend: vllm cannot be imported ({error}); "
                "`pip install longred[vllm]` on a machine with a GPU, or set evaluation.backend=hf"
            ) from error
        self._sampling = SamplingParams
        self._model: Any = LLM(
            model=str(folder),
            dtype=dtype,
            max_model_len=max_tokens,
            gpu_memory_utilization=memory_fraction,
            trust_remote_code=False,
            seed=0,
            # vLLM refuses what a model says it was not made for; here that is asked on purpose.
            hf_overrides={"max_position_embeddings": max_tokens} if max_tokens > window else {},
        )

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]
    ) -> list[list[int]]:
        """Return the tokens that follow each prompt."""
        settings = self._sampling(temperature=0.0, max_tokens=max_tokens, stop=list(stop))
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        found = self._model.generate(prompts, settings, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in found]


class EngineExaminee(Examinee):
    """A model under examination whose answers an engine generates.

    Attributes:
        engine: what generates; set by `by_engine`.
    """

    engine: Engine

    def _continued(
        self, context: Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> Tensor:
        if settings.get("do_sample"):
            raise ConfigError(
                "evaluation.backend: vllm answers greedily and this task wants samples; "
                "set evaluation.backend=hf"
            )
        mask_BT = settings["attention_mask"].bool()
        rows = [row[kept].tolist() for row, kept in zip(context, mask_BT, strict=True)]
        made = self.engine.generate(rows, max_tokens=max_length - context.shape[1], stop=stop)
        answers_BT = padded([row or [self._pad] for row in made], self._pad, side="right")
        return torch.cat([context, answers_BT.to(context.device)], dim=1)

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)


def by_engine(examinee: Examinee, engine: Engine) -> EngineExaminee:
    """Return an examinee like the given one whose answers an engine generates."""
    found = EngineExaminee(
        pretrained=examinee.model,
        tokenizer=examinee.tokenizer,
        backend="causal",
        max_length=examinee.max_length,
        batch_size=max(int(examinee.batch_size), PARITY_SAMPLES),
    )
    found.is_chat, found.engine = examinee.is_chat, engine
    found.limit(examinee.max_length)
    return found


def check_parity(reference: Examinee, other: Examinee, unit: Unit) -> dict[str, Any]:
    """Ask two examinees the same first questions and compare answers and scores.

    Args:
        reference: the model in transformers.
        other: the same model, generating otherwise.
        unit: generated answers are asked for.

    Returns:
        `same_share` of the answers, `points` between the scores, `num_samples`.

    Raises:
        PreflightError: they differ by more than MIN_SAME_SHARE and MAX_POINTS allow.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        rows = unit.read_samples()[:PARITY_SAMPLES]
        write_lines(path, rows)
        few = dataclasses.replace(unit, path=path, sha256=sha256_file(path), num_samples=len(rows))
        wanted, found = ask(reference, few), ask(other, few)
    count = len(wanted)
    pairs = list(zip(wanted, found, strict=True))
    same = sum(a["got"].strip() == b["got"].strip() for a, b in pairs) / count
    points = sum(b["score"] - a["score"] for a, b in pairs) / count
    if same < MIN_SAME_SHARE or abs(points) > MAX_POINTS:
        raise PreflightError(
            f"evaluation.backend: vllm gives {100 * same:.0f} % of {count} answers to {unit.task} "
            f"as transformers does ({100 * MIN_SAME_SHARE:.0f} % are needed) and scores "
            f"{points:+.1f} points beside it (at most {MAX_POINTS:g}); set "
            "evaluation.backend=hf, or evaluation.dtype=float32"
        )
    return {"same_share": same, "points": points, "num_samples": count}
