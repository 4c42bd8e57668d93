"""A loaded model as lm-eval sees it: prompts are never cut unseen, full logits never held.

Shapes: B rows, T tokens, D hidden dimension, M scored tokens, C of them at a time, V vocabulary.
"""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import LogitsProcessor

from longred.errors import NonFiniteLossError
from longred.evaluation.prompts import encode
from longred.models.load import hidden_states

# It warns of every model that is loaded already and of every data set made in process.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# A reminder that prompts exceed the window, which they do on purpose.
logging.getLogger("transformers.generation.stopping_criteria").setLevel(logging.ERROR)

CHUNK_TOKENS = 1024
NOT_FINITE = (
    "the model's {} not finite; check the model's weights, or set evaluation.dtype to float32"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a generation ended.

    Attributes:
        reason: `eos`, `stop` (a stop sequence of the task) or `budget`.
        num_tokens: tokens generated, up to EOS.
        is_truncated: whether its prompt was cut on the left.
    """

    reason: str
    num_tokens: int
    is_truncated: bool


class Examinee(HFLM):  # type: ignore[misc]
    """A causal language model under examination, without progress bars.

    Prompts are padded on the left for generation, where transformers counts positions from the
    first real token, and on the right for likelihoods, where padding comes after what is read.

    Attributes:
        is_chat: whether questions that a chat may ask go through the chat template.
        in_chat: whether the prompts at hand did: it puts BOS and other control tokens into the
            text; anywhere else they are plain text.
        endings: prompt → how its last generation ended.
        num_truncated: likelihoods whose context was cut on the left.
    """

    is_chat = False
    in_chat = False
    endings: dict[str, Ending]
    num_truncated: int

    def limit(self, max_tokens: int, *, in_chat: bool = False) -> None:
        """Set the longest prompt with its answer from here on, and forget what was counted."""
        self._max_length, self.in_chat = max_tokens, in_chat
        self.endings, self.num_truncated = {}, 0

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **settings: Any,
    ) -> list[int]:
        """Return the tokens of a text as `prompts.encode` makes them, or of a chat's text."""
        if self.in_chat:
            tokens = list(
                self.tokenizer(
                    string, add_special_tokens=False, split_special_tokens=False, verbose=False
                )["input_ids"]
            )
        else:
            tokens = encode(self.tokenizer, string)
            if add_special_tokens is False and self.tokenizer.bos_token_id is not None:
                tokens = tokens[1:]
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and attention mask, both of shape [prompts, longest prompt]."""
        rows = [self.tok_encode(string) for string in strings]
        cut = [row[-left_truncate_len:] if left_truncate_len else row for row in rows]
        for string, row, kept in zip(strings, rows, cut, strict=True):
            # Completed when the answer is there.
            self.endings[string] = Ending("budget", 0, len(kept) < len(row))
        ones = [[1] * len(row) for row in cut]
        tokens_BT = padded(cut, int(self.tokenizer.pad_token_id), side=padding_side)
        self._batch = list(strings)
        return tokens_BT, padded(ones, 0, side=padding_side)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        """Return the text of tokens; None for the EOS that a tokenizer does not have."""
        if tokens is None:
            return None
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return log-likelihood and greediness of each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return the text generated for each request, and remember how each ended."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> Tensor:
        """Generate a batch, refusing logits that are not finite."""
        tokens_BT = self._continued(context, max_length, stop, **settings)
        for prompt, row in zip(self._batch, tokens_BT[:, context.shape[1] :].tolist(), strict=True):
            reason, num_tokens = self._ending(row, stop)
            was = self.endings[prompt]
            self.endings[prompt] = Ending(reason, num_tokens, was.is_truncated)
        return tokens_BT

    def _continued(
        self, context: Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> Tensor:
        """Return a batch with its answers behind it, as transformers generates them."""
        tokens_BT: Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=[_FiniteLogits()], **settings
        )
        return tokens_BT

    def _ending(self, row: list[int], stop: Sequence[str]) -> tuple[str, int]:
        """Return why a generation ended and after how many tokens; padding may look like EOS."""
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id} & set(row)
        num_tokens = min(map(row.index, ends), default=len(row))

        def is_stopped(count: int) -> bool:
            text = self.tok_decode(row[:count])
            return any(word in text for word in stop)

        if is_stopped(num_tokens):
            # A row goes on as long as others of its batch do.
            return "stop", bisect_left(range(num_tokens + 1), True, key=is_stopped)
        return ("eos", num_tokens + 1) if ends else ("budget", num_tokens)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of continuations.

        The method it replaces holds logits of whole prompts, twice; here they exist for the
        continuations only, `CHUNK_TOKENS` tokens at a time. Equal rows are run once.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            whole = [*context, *continuation]
            self.num_truncated += len(whole) > self.max_length + 1
            rows.setdefault(tuple(whole[-(self.max_length + 1) : -1]), []).append(number)
        # The longest first: what does not fit into memory fails at once.
        order = sorted(rows, key=lambda row: (-len(row), row))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), int(self.batch_size)):
            batch = order[start : start + int(self.batch_size)]
            tokens_BT = padded(batch, 0, side="right").to(self.device)
            last = self.model.config.num_hidden_layers
            hidden_BTD = hidden_states(self.model, tokens_BT, layers=[last])[last]
            asked = [(b, number) for b, row in enumerate(batch) for number in rows[row]]
            targets = [requests[number][2] for _, number in asked]
            places_M = torch.cat(
                [
                    b * hidden_BTD.shape[1]
                    + torch.arange(len(batch[b]) - len(target), len(batch[b]))
                    for (b, _), target in zip(asked, targets, strict=True)
                ]
            ).to(self.device)
            target_M = torch.tensor([t for target in targets for t in target], device=self.device)
            scores_M, greedy_M = self._score(hidden_BTD.flatten(0, 1)[places_M], target_M)
            sizes = [len(target) for target in targets]
            parts = torch.split(scores_M, sizes), torch.split(greedy_M, sizes)
            for (_, number), scores, greedy in zip(asked, *parts, strict=True):
                answers[number] = float(scores.sum()), bool(greedy.all())
        return answers

    def _score(self, hidden_MD: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each target, and whether it is the likeliest token."""
        scores, greedy = [], []
        head = self.model.get_output_embeddings()
        for start in range(0, len(target_M), CHUNK_TOKENS):
            target_C = target_M[start : start + CHUNK_TOKENS]
            logits_CV = head(hidden_MD[start : start + CHUNK_TOKENS]).float()
            chosen_C = logits_CV.log_softmax(-1).gather(1, target_C[:, None])[:, 0]
            if bool(chosen_C.isnan().any()):
                raise NonFiniteLossError(NOT_FINITE.format("likelihoods are"))
            scores.append(chosen_C)
            greedy.append(logits_CV.argmax(-1) == target_C)
        return torch.cat(scores), torch.cat(greedy)


class _FiniteLogits(LogitsProcessor):
    """Ends a generation whose logits are NaN: its greedy tokens would be 0 without a word."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores as they are.

        Raises:
            NonFiniteLossError: one of them is NaN.
        """
        if bool(scores.isnan().any()):
            raise NonFiniteLossError(NOT_FINITE.format("logits are"))
        return scores


def padded(rows: Sequence[Sequence[int]], value: int, *, side: str) -> Tensor:
    """Return rows of tokens as one tensor [rows, longest row]."""
    tokens_BT = torch.full((len(rows), max(map(len, rows))), value)
    for number, row in enumerate(rows):
        place = slice(-len(row), None) if side == "left" else slice(len(row))
        tokens_BT[number, place] = torch.tensor(row)
    return tokens_BT


def examinee(
    model: Any, tokenizer: Any, *, max_tokens: int, batch_size: int, is_chat: bool = False
) -> Examinee:
    """Wrap a loaded model for lm-eval.

    Args:
        model: a causal language model whose attention takes padding (`sdpa`).
        tokenizer: its tokenizer; BOS is put before every prompt.
        max_tokens: the longest prompt with its answer, which may exceed the model's own window.
        batch_size: prompts at a time.
        is_chat: whether prompts come out of the tokenizer's chat template.
    """
    if tokenizer.pad_token_id is None:
        # Any token will do: padding is masked, or comes after what is read.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    found = Examinee(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        max_length=max_tokens,
        batch_size=batch_size,
    )
    found.is_chat = is_chat
    found.limit(max_tokens)
    return found
