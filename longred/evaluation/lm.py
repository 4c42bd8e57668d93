"""TransformersLM: an LM of lm-eval on a loaded model; it generates answers and scores choices.

Unlike lm-eval's own adapter it never truncates a prompt silently, never pads under a mask, never
holds logits of whole prompts, and runs what prompts have in common once.

Shapes: M scored tokens, C of them per chunk, D hidden size, V vocabulary.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lm_eval.api.task
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from longred.errors import ConfigError, MismatchError, NonFiniteLossError
from longred.evaluation.counting import encode, prefix_ids
from longred.evaluation.generation import NOT_FINITE, Generator, Sampling, eos_ids
from longred.evaluation.runner import Runner, Tokens
from longred.evaluation.tasks import Row

# lm-eval warns about every model that is already loaded and every data set built in this process.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# lm-eval has no option to hide its progress bar over prompts.
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)

CHUNK_TOKENS = 1024
DEFAULT_NEW_TOKENS = 256
"""Generation budget of lm-eval tasks that set none."""
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
"""How tokens are chosen -> transformers' default."""
_ROLLING_ROWS = 64
"""Windows of a long text that lm-eval hands over together."""


class Engine(Protocol):
    """What generates the answers."""

    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        max_tokens: int,
        stop: Sequence[str],
        sampling: Sampling,
    ) -> list[list[int]]:
        """Return the tokens after each prompt, up to EOS, a stop text or `max_tokens`."""


class TransformersLM(HFLM):  # type: ignore[misc]
    """A causal language model under evaluation, without progress bars.

    Args:
        model: a causal language model with attention `longred`.
        tokenizer: its tokenizer; prompts begin as `counting.encode` says.
        max_tokens: the longest prompt with its answer of any task; may exceed the model's own
            window.
        batch_tokens: see `Runner`.
        is_chat: whether generated answers go through the tokenizer's chat template.
        engine: generates the answers; the model itself if None.

    Attributes:
        in_chat: whether the current prompts went through the template: only then are control tokens
            in the text (BOS among them) encoded as control tokens.
        endings: prompt -> `ended` (`eos`, `stop` for a stop sequence of the task, or `budget`) and
            `output_tokens` (generated tokens up to EOS) of its last generation.
    """

    in_chat = False
    endings: dict[str, Row]

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_tokens: int,
        batch_tokens: int | str = "auto",
        is_chat: bool = False,
        engine: Engine | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            # HFLM wants one, but nothing is padded with it.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            max_length=max_tokens,
            batch_size=_ROLLING_ROWS,
        )
        self.is_chat = is_chat
        self.runner = Runner(model, batch_tokens)
        self.engine: Engine = engine or Generator(self.runner, tokenizer)
        self._window = max_tokens
        self.reset(max_tokens)

    def reset(self, max_tokens: int, *, in_chat: bool = False) -> None:
        """Start a task: set its longest prompt with answer and forget how generations ended.

        Args:
            max_tokens: of the task, without a template.
            in_chat: whether its prompts went through the template, which may fill the window.
        """
        self._max_length = max(max_tokens, self._window) if in_chat else max_tokens
        self.in_chat, self.endings = in_chat, {}

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **settings: Any,
    ) -> list[int]:
        """Tokenise a text as `counting.encode` does, or text from the chat template."""
        if self.in_chat:
            encoded = self.tokenizer(
                string, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
            tokens = list(encoded["input_ids"])
        else:
            tokens = encode(self.tokenizer, string)
            if add_special_tokens is False:
                tokens = tokens[len(prefix_ids(self.tokenizer)) :]
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        """Return the text of tokens; None for a missing EOS token."""
        if tokens is None:
            return None
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return (log-likelihood, is greedy) of each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

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
        """Generate with the same settings after each context."""
        values: Row = dict(normalize_gen_kwargs(settings, DEFAULT_NEW_TOKENS))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stop = [text for text in handle_stop_sequences(values.pop("until", None), eos=eos) if text]
        max_tokens = int(values.pop("max_gen_toks"))
        room = self.max_length - max_tokens
        encoded = (self.tok_encode(text, left_truncate_len=room) for text in contexts)
        # A model continues something: an empty prompt becomes what precedes every text.
        prompts = [np.array(tokens or [self.prefix_token_id], np.int64) for tokens in encoded]
        answers = self.engine.generate(
            prompts,
            max_tokens=max_tokens,
            stop=[text for text in stop if text != eos],
            sampling=sampling_of(values, self.model.generation_config),
        )
        ends = eos_ids(self.model, self.tokenizer)
        texts = []
        for context, answer in zip(contexts, answers, strict=True):
            text = self.tok_decode(answer)
            shown = postprocess_generated_text(text, stop, None)
            # Another engine may leave out the EOS of an empty answer.
            is_ended = not answer or answer[-1] in ends
            ended = "stop" if shown != text else "eos" if is_ended else "budget"
            self.endings[context] = {"ended": ended, "output_tokens": len(answer)}
            texts.append(shown)
        return texts

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, is greedy) of continuations.

        The inherited method holds logits of whole prompts, twice; here they exist for the
        continuations only, `CHUNK_TOKENS` tokens at a time. Equal rows run once.

        Raises:
            MismatchError: a continuation has no tokens, or more than the longest prompt.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                before, choice = (str(text) for text in texts or ("", ""))
                raise MismatchError(
                    f"the choice {choice[:60]!r} after {before[-60:]!r} has {len(continuation)} "
                    f"tokens, and only 1 to {self.max_length} can be scored; change it in the data"
                )
            tokens = [*context, *continuation]
            rows.setdefault(tuple(tokens[-(self.max_length + 1) : -1]), []).append(number)
        results: dict[int, tuple[float, bool]] = {}

        def run() -> None:
            """Score the rows that have no result yet."""
            left = [row for row, numbers in rows.items() if numbers[0] not in results]
            arrays = [np.array(row, np.int64) for row in left]
            sizes = [max(len(requests[n][2]) for n in rows[row]) for row in left]
            for places, hidden in self.runner.hidden_of(arrays, sizes):
                wanted = [
                    (number, hidden_TD[len(hidden_TD) - len(requests[number][2]) :])
                    for place, hidden_TD in zip(places, hidden, strict=True)
                    for number in rows[left[place]]
                ]
                results.update(self._scores(wanted, requests))

        if rows:
            self.runner.halving(run, max(map(len, rows)))
        return [results[number] for number in range(len(requests))]

    def _scores(
        self, wanted: Sequence[tuple[int, Tensor]], requests: Sequence[tuple[Any, Any, list[int]]]
    ) -> dict[int, tuple[float, bool]]:
        """Score continuations, given the hidden states that predict their tokens."""
        targets = [requests[number][2] for number, _ in wanted]
        target_M = torch.tensor([t for target in targets for t in target], device=self.device)
        scores_M, greedy_M = self._score(torch.cat([hidden for _, hidden in wanted]), target_M)
        sizes = [len(target) for target in targets]
        parts = zip(wanted, *(torch.split(x, sizes) for x in (scores_M, greedy_M)), strict=True)
        return {n: (float(scores.sum()), bool(greedy.all())) for (n, _), scores, greedy in parts}

    def _score(self, hidden_MD: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each target, and whether it is the likeliest token."""
        scores, greedy = [], []
        for start in range(0, len(target_M), CHUNK_TOKENS):
            target_C = target_M[start : start + CHUNK_TOKENS]
            logits_CV = self.runner.logits(hidden_MD[start : start + CHUNK_TOKENS])
            chosen_C = logits_CV.log_softmax(-1).gather(1, target_C[:, None])[:, 0]
            if bool(chosen_C.isnan().any()):
                raise NonFiniteLossError(NOT_FINITE.format("likelihoods are"))
            scores.append(chosen_C)
            greedy.append(logits_CV.argmax(-1) == target_C)
        return torch.cat(scores), torch.cat(greedy)


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
