"""LocalLM: a loaded model that scores continuations and writes answers to prompts.

It never truncates a prompt silently, never pads under a mask, never holds logits of whole prompts,
and runs what prompts have in common once. It needs torch and transformers only; `lm` gives it the
interface of lm-eval.

Shapes: M scored tokens, C of them per chunk, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from longred.errors import MismatchError, NonFiniteLossError
from longred.evaluation.counting import prefix_ids
from longred.evaluation.generation import NOT_FINITE, Generator, Sampling, eos_ids
from longred.evaluation.prompts import Message
from longred.evaluation.runner import Runner, Tokens
from longred.evaluation.tasks import Row

CHUNK_TOKENS = 1024
GROUP_CHARACTERS = 2**22
"""Characters of the texts that are tokenised together, which takes a hundred bytes for each."""


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


class Request(NamedTuple):
    """What is asked about a sample.

    Attributes:
        args: a prompt, and a continuation or the settings of a generation (`until`,
            `max_gen_toks`).
        doc_id: number of the sample.
    """

    args: tuple[Any, ...]
    doc_id: int


class LocalLM:
    """A causal language model under evaluation.

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
        self.tokenizer, self.is_chat = tokenizer, is_chat
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

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return self._max_length

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **settings: Any,
    ) -> list[int]:
        """Tokenise a text as `counting.encode` does, or text from the chat template."""
        (tokens,) = self.encode_all([string])
        if add_special_tokens is False and not self.in_chat:
            tokens = tokens[len(prefix_ids(self.tokenizer)) :]
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def encode_all(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Yield the tokens of each text, as `tok_encode` does.

        Many long prompts are tokenised on all cores: a small model reads them faster than one core.
        """
        settings = {"split_special_tokens": False} if self.in_chat else {}
        front = [] if self.in_chat else prefix_ids(self.tokenizer)
        for group in _groups(texts):
            encoded = self.tokenizer(group, add_special_tokens=False, verbose=False, **settings)
            yield from ([*front, *ids] for ids in encoded["input_ids"])

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        """Return the text of tokens; None for a missing EOS token."""
        if tokens is None:
            return None
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, turns: Sequence[Message], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt of a chat; without generation prompt, it ends within its last turn."""
        return str(
            self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return (log-likelihood, is greedy) of each request's continuation of its prompt."""
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens([(pair, *self._encode_pair(*pair)) for pair in pairs])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenise a prompt and its continuation as lm-eval does.

        Spaces at the end of the prompt belong to the continuation. The empty prompt is what
        precedes every text.
        """
        if not context:
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            first = [self._prefix_id()]
            return (first, tokens) if tokens[:1] != first else (first, tokens[1:])
        front = context.rstrip()
        whole = self.tok_encode(context + continuation)
        tokens = self.tok_encode(front)
        return tokens, whole[len(tokens) :]

    def _prefix_id(self) -> int:
        """Return the token that precedes every text."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Return the text generated greedily for each request; record how each generation ended.

        Raises:
            NonFiniteLossError: the model's logits are NaN.
        """
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            settings = request.args[1]
            key = (settings["max_gen_toks"], *settings["until"])
            alike.setdefault(key, []).append(number)
        texts = [""] * len(requests)
        for (max_tokens, *stop), numbers in alike.items():
            contexts = [requests[number].args[0] for number in numbers]
            answers = self._answers(contexts, stop, max_tokens, Sampling())
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
        return texts

    def _answers(
        self, contexts: Sequence[str], until: Sequence[str], max_tokens: int, sampling: Sampling
    ) -> list[str]:
        """Generate with the same settings after each context."""
        eos = self.tok_decode(self.tokenizer.eos_token_id, skip_special_tokens=False)
        room = self.max_length - max_tokens
        # A model continues something: an empty prompt becomes what precedes every text.
        prompts = [
            np.array((tokens[-room:] if room else tokens) or [self._prefix_id()], np.int64)
            for tokens in self.encode_all(contexts)
        ]
        answers = self.engine.generate(
            prompts,
            max_tokens=max_tokens,
            stop=[text for text in until if text and text != eos],
            sampling=sampling,
        )
        ends = eos_ids(self.runner.model, self.tokenizer)
        texts = []
        for context, answer in zip(contexts, answers, strict=True):
            text = shown = str(self.tok_decode(answer))
            for end in (*until, eos):
                shown = shown.partition(end)[0] if end else shown
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

        Logits exist for the continuations only, `CHUNK_TOKENS` tokens at a time. Equal rows run
        once.

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
        target_M = torch.tensor([t for target in targets for t in target])
        target_M = target_M.to(self.runner.device)
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


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield groups of texts of at most GROUP_CHARACTERS; one longer text is a group of its own."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > GROUP_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group
