"""TransformersLM: a `LocalLM` as an LM of lm-eval."""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lm_eval.api.task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm
from transformers import GenerationConfig

from longred.errors import ConfigError
from longred.evaluation.generation import Sampling
from longred.evaluation.local_lm import LocalLM
from longred.evaluation.tasks import Row

# lm-eval warns about every model that is already loaded and every data set built in this process.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# lm-eval has no option to hide its progress bar over prompts.
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)

DEFAULT_NEW_TOKENS = 256
"""Generation budget of lm-eval tasks that set none."""
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
"""How tokens are chosen -> transformers' default."""
_ROLLING_ROWS = 64
"""Windows of a long text that lm-eval hands over together."""


class TransformersLM(LocalLM, HFLM):  # type: ignore[misc]
    """A causal language model under evaluation by lm-eval, without progress bars.

    Args:
        model, tokenizer, max_tokens, settings: see `LocalLM`.
    """

    # lm-eval's own knows what to do with templates that refuse a system message.
    apply_chat_template = HFLM.apply_chat_template

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int, **settings: Any) -> None:
        if tokenizer.pad_token_id is None:
            # HFLM wants one, but nothing is padded with it.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        HFLM.__init__(
            self,
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            max_length=max_tokens,
            batch_size=_ROLLING_ROWS,
        )
        LocalLM.__init__(self, model, tokenizer, max_tokens=max_tokens, **settings)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Return the text generated for each request and record how each generation ended.

        Raises:
            ConfigError: a task sets an option of generation that is not supported.
            NonFiniteLossError: the model's logits are NaN.
        """
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        for settings, numbers in alike.items():
            contexts = [requests[number].args[0] for number in numbers]
            answers = self._generate(contexts, json.loads(settings))
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
        return texts

    def _generate(self, contexts: Sequence[str], settings: Row) -> list[str]:
        """Generate with the same settings of lm-eval after each context."""
        values: Row = dict(normalize_gen_kwargs(settings, DEFAULT_NEW_TOKENS))
        stop = handle_stop_sequences(values.pop("until", None), eos=None)
        max_tokens = int(values.pop("max_gen_toks"))
        sampling = sampling_of(values, self.runner.model.generation_config)
        return self._answers(contexts, stop, max_tokens, sampling)


def sampling_of(settings: Mapping[str, Any], own: GenerationConfig) -> Sampling:
    """Return how tokens are chosen, as transformers' `generate` reads a task's settings.

    Args:
        settings: of lm-eval, without budget and stop texts; draws nothing unless `do_sample`.
        own: the model's generation_config.json, which holds where a task sets nothing.

    Raises:
        ConfigError: a setting is not supported.
    """
    values = dict(settings)
    draws = bool(values.pop("do_sample", False)) and values.get("temperature") != 0.0
    neutral = {"num_beams": 1, "use_cache": True, "num_return_sequences": 1}
    for name, value in values.items():
        if name not in _SAMPLING and neutral.get(name, ...) != value:
            raise ConfigError(
                f"generation_kwargs.{name}: {value} is not supported; tasks may set "
                f"{', '.join(sorted(_SAMPLING))}, do_sample, until and max_gen_toks"
            )
    found: Row = {}
    for name, default in _SAMPLING.items():
        given = (values.get(name), getattr(own, name), default)
        found[name] = type(default)(next(value for value in given if value is not None))
    if not draws:
        return Sampling(repetition_penalty=found["repetition_penalty"])
    return Sampling(**found)


def request_tokens(arguments: Sequence[Any], tokenise: Callable[[str], Sequence[int]]) -> int:
    """Count the tokens of an lm-eval request, with its answer.

    Args:
        arguments: the prompt, and a continuation or the settings of a generation.
        tokenise: returns the tokens of a text.
    """
    prompt, second = str(arguments[0]), arguments[1] if len(arguments) > 1 else ""
    if isinstance(second, Mapping):
        return len(tokenise(prompt)) + new_tokens(arguments)
    return len(tokenise(prompt + str(second)))


def new_tokens(arguments: Sequence[Any]) -> int:
    """Return the generation budget of an lm-eval request; 0 for a likelihood."""
    settings = arguments[-1]
    if not isinstance(settings, Mapping):
        return 0
    # Tasks also call it max_new_tokens, max_tokens or max_completion_tokens.
    return int(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS)["max_gen_toks"])
