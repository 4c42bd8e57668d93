"""VllmLM: generates answers with vLLM, after a check that they equal those of transformers.

vLLM only generates; likelihoods and measurements use transformers, where memory for logits is
bounded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longred.config import EvaluationConfig
from longred.errors import ConfigError, PreflightError
from longred.evaluation.generation import Sampling
from longred.evaluation.lm import TransformersLM
from longred.evaluation.own_tasks import run_own_task
from longred.evaluation.tasks import Row, Task
from longred.models.load import load_config

PARITY_SAMPLES = 50
MIN_SAME_SHARE = 0.9
"""Minimum share of identical answers; kernels that sum in another order break ties differently."""
MAX_POINTS = 2.0
"""Maximum difference of the scores, in percentage points."""


class VllmEngine:
    """A model folder in vLLM, on one GPU.

    Args:
        folder: the model's folder.
        config: how it is evaluated.
        max_tokens: tokens of a prompt and its answer, at most.

    Raises:
        PreflightError: vLLM is not installed.
    """

    def __init__(self, folder: Path, config: EvaluationConfig, max_tokens: int) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise PreflightError(
                f"evaluation.backend: vllm cannot be imported ({error}); "
                "`pip install longred[vllm]` on a machine with a GPU, or set evaluation.backend=hf"
            ) from error
        window = int(load_config(folder).max_position_embeddings)
        self._sampling = SamplingParams
        self._model: Any = LLM(
            model=str(folder),
            dtype=config.dtype,
            max_model_len=max_tokens,
            gpu_memory_utilization=config.vllm_memory_fraction,
            trust_remote_code=False,
            seed=0,
            # vLLM refuses lengths beyond the model's window, which are evaluated on purpose.
            hf_overrides={"max_position_embeddings": max_tokens} if max_tokens > window else {},
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stop: Sequence[str],
        sampling: Sampling,
    ) -> list[list[int]]:
        """Return the tokens after each prompt, up to EOS, a stop text or `max_tokens`."""
        if sampling.temperature:
            raise ConfigError(
                "evaluation.backend: vllm generates greedily, but this task draws samples; "
                "set evaluation.backend=hf"
            )
        settings = self._sampling(
            temperature=0.0,
            max_tokens=max_tokens,
            stop=list(stop),
            repetition_penalty=sampling.repetition_penalty,
        )
        rows = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._model.generate(rows, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def check_parity(reference: TransformersLM, other: TransformersLM, task: Task) -> Row:
    """Compare two LMs on the first samples of a task.

    Args:
        reference: the model in transformers.
        other: the same model with another engine.
        task: a local task with generated answers.

    Returns:
        `same_share` (share of identical answers), `points` (difference of the scores) and
        `num_samples`.

    Raises:
        PreflightError: the differences exceed MIN_SAME_SHARE or MAX_POINTS.
    """
    expected, found = (run_own_task(lm, task, PARITY_SAMPLES) for lm in (reference, other))
    count = len(expected)
    pairs = list(zip(expected, found, strict=True))
    same = sum(a["got"].strip() == b["got"].strip() for a, b in pairs) / count
    points = sum(b["score"] - a["score"] for a, b in pairs) / count
    if same < MIN_SAME_SHARE or abs(points) > MAX_POINTS:
        raise PreflightError(
            f"evaluation.backend: vllm gives {100 * same:.0f} % of {count} answers to {task.name} "
            f"as transformers does (minimum {100 * MIN_SAME_SHARE:.0f} %) and its score differs by "
            f"{points:+.1f} points (maximum {MAX_POINTS:g}); set "
            "evaluation.backend=hf, or evaluation.dtype=float32"
        )
    return {"same_share": same, "points": points, "num_samples": count}
