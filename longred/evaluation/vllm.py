"""VllmEngine: generates answers with vLLM, after a check that they score as transformers' do.

vLLM only generates; likelihoods and measurements use transformers, where memory for logits is
bounded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longred.config import EvaluationConfig
from longred.errors import ConfigError, PreflightError
from longred.evaluation.generation import Sampling
from longred.evaluation.intervals import Averages, draws_of
from longred.evaluation.lm import TransformersLM
from longred.evaluation.own_tasks import run_own_task
from longred.evaluation.runner import Tokens, rope_switch
from longred.evaluation.tasks import Row, Task
from longred.models.load import load_config

PARITY_SAMPLES = 50
MARGIN = 15.0
"""Most points by which scores may differ, with 95 % certainty; fifty equal scores give 9."""


TEMPLATE_TOKENS = 256
"""Tokens that a chat template may add to a prompt."""


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
        model_config = load_config(folder)
        window = int(model_config.max_position_embeddings)
        longest = max_tokens + TEMPLATE_TOKENS
        if longest > (rope_switch(model_config) or longest):
            raise PreflightError(
                "evaluation.backend: vllm takes the long factors of this model's RoPE at every "
                f"length, and transformers only beyond {rope_switch(model_config)} tokens; set "
                "evaluation.backend=hf"
            )
        self._sampling = SamplingParams
        self._model: Any = LLM(
            model=str(folder),
            dtype=config.dtype,
            max_model_len=longest,
            gpu_memory_utilization=config.vllm_memory_fraction,
            trust_remote_code=False,
            seed=0,
            # vLLM refuses lengths beyond the model's window, which are evaluated on purpose.
            hf_overrides={"max_position_embeddings": longest} if longest > window else {},
        )

    def generate(
        self,
        prompts: Sequence[Tokens],
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
        rows = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        outputs = self._model.generate(rows, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def check_parity(reference: TransformersLM, other: TransformersLM, tasks: Sequence[Task]) -> Row:
    """Compare the scores of two LMs on the first samples of some tasks.

    Answers may differ in letters, since other kernels break ties differently; scores may not.

    Args:
        reference: the model in transformers.
        other: the same model with another engine.
        tasks: local tasks with generated answers.

    Returns:
        `points` (difference of the scores), `interval` (its 95 % interval), `same_share` (share of
        identical answers) and `num_samples`.

    Raises:
        PreflightError: the interval is not within MARGIN.
    """
    each = -(-PARITY_SAMPLES // len(tasks))
    expected, found = (
        [answer for task in tasks for answer in run_own_task(lm, task, each)]
        for lm in (reference, other)
    )
    # Another kernel changes each answer by itself, also those to one question.
    scores = [[{"score": answer["score"]} for answer in answers] for answers in (found, expected)]
    differences = Averages([draws_of(scores)])
    low, high = (float(end) for end in differences.difference())
    points = float(differences.points())
    if max(-low, high) > MARGIN:
        raise PreflightError(
            f"evaluation.backend: the scores of vllm differ from those of transformers by "
            f"{points:+.1f} points (95 % interval {low:.1f} to {high:.1f}, of {len(expected)} "
            f"answers), which is not surely within {MARGIN:g}; set evaluation.backend=hf, or "
            f"evaluation.dtype=float32, or ask {PARITY_SAMPLES} samples or more"
        )
    pairs = list(zip(expected, found, strict=True))
    return {
        "points": points,
        "interval": [low, high],
        "same_share": sum(a["got"].strip() == b["got"].strip() for a, b in pairs) / len(pairs),
        "num_samples": len(pairs),
    }
