"""TransformersLM: an LM of lm-eval on a loaded model; it generates answers and scores choices.

Unlike lm-eval's own adapter it never truncates a prompt silently and never holds logits of whole
prompts.

Shapes: B rows, T tokens, D hidden size, M scored tokens, C of them per chunk, V vocabulary.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lm_eval.api.task
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import LogitsProcessor

from longred.errors import NonFiniteLossError
from longred.evaluation.counting import encode
from longred.evaluation.tasks import Row
from longred.models.load import hidden_states

# lm-eval warns about every model that is already loaded and every data set built in this process.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# transformers warns about prompts beyond the window, which are intended here.
logging.getLogger("transformers.generation.stopping_criteria").setLevel(logging.ERROR)
# lm-eval has no option to hide its progress bar over prompts.
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)

CHUNK_TOKENS = 1024
DEFAULT_NEW_TOKENS = 256
"""Generation budget of lm-eval tasks that set none."""
NOT_FINITE = (
    "the model's {} not finite; check the model's weights, or set evaluation.dtype to float32"
)


class TransformersLM(HFLM):  # type: ignore[misc]
    """A causal language model under evaluation, without progress bars.

    Prompts are padded on the left for generation, where transformers counts positions from the
    first real token, and on the right for likelihoods, where the padding follows all scored tokens.

    Args:
        model: a causal language model whose attention supports padding (`sdpa`).
        tokenizer: its tokenizer; BOS is prepended to every prompt.
        max_tokens: the longest prompt with its answer; may exceed the model's own window.
        batch_size: prompts per batch.
        is_chat: whether generated answers go through the tokenizer's chat template.

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
        batch_size: int,
        is_chat: bool = False,
    ) -> None:
        if tokenizer.pad_token_id is None:
            # Any token will do: padding is masked, or follows all scored tokens.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            max_length=max_tokens,
            batch_size=batch_size,
        )
        self.is_chat = is_chat
        self.reset(max_tokens)

    def reset(self, max_tokens: int, *, in_chat: bool = False) -> None:
        """Start a task: set its longest prompt with answer and forget how generations ended."""
        self._max_length, self.in_chat, self.endings = max_tokens, in_chat, {}

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
        """Return tokens and attention mask, both [prompts, longest prompt]."""
        self._prompts = list(strings)
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        tokens_BT = padded(rows, int(self.tokenizer.pad_token_id), side=padding_side)
        return tokens_BT, padded([[1] * len(row) for row in rows], 0, side=padding_side)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        """Return the text of tokens; None for a missing EOS token."""
        if tokens is None:
            return None
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return (log-likelihood, is greedy) of each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return the text generated for each request and record how each generation ended."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> Tensor:
        tokens_BT = self._generate_batch(context, max_length, stop, **settings)
        answers = tokens_BT[:, context.shape[1] :].tolist()
        for prompt, answer in zip(self._prompts, answers, strict=True):
            self.endings[prompt] = self._ending(answer, stop)
        return tokens_BT

    def _generate_batch(
        self, context: Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> Tensor:
        """Return the prompts followed by their answers; raises if logits are NaN."""
        tokens_BT: Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=[_FiniteLogits()], **settings
        )
        return tokens_BT

    def _ending(self, answer: list[int], stop: Sequence[str]) -> Row:
        """Return why a generation ended and after how many tokens; padding may equal EOS."""
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id} & set(answer)
        num_tokens = min(map(answer.index, ends), default=len(answer))

        def is_stopped(count: int) -> bool:
            text = self.tok_decode(answer[:count])
            return any(word in text for word in stop)

        if is_stopped(num_tokens):
            # A row continues until all rows of its batch have ended.
            count = bisect_left(range(num_tokens + 1), True, key=is_stopped)
            return {"ended": "stop", "output_tokens": count}
        if ends:
            return {"ended": "eos", "output_tokens": num_tokens + 1}
        return {"ended": "budget", "output_tokens": num_tokens}

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
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            tokens = [*context, *continuation]
            rows.setdefault(tuple(tokens[-(self.max_length + 1) : -1]), []).append(number)
        # Longest first: what does not fit into memory fails at once.
        order = sorted(rows, key=lambda row: (-len(row), row))
        batch_size, last = int(self.batch_size), self.model.config.num_hidden_layers
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            tokens_BT = padded(batch, 0, side="right").to(self.device)
            hidden_BTD = hidden_states(self.model, tokens_BT, layers=[last])[last]
            numbers = [number for row in batch for number in rows[row]]
            targets = [requests[number][2] for number in numbers]
            row_ends = [
                b * hidden_BTD.shape[1] + len(row) for b, row in enumerate(batch) for _ in rows[row]
            ]
            position_M = torch.cat(
                [
                    torch.arange(end - len(target), end)
                    for end, target in zip(row_ends, targets, strict=True)
                ]
            ).to(self.device)
            target_M = torch.tensor([t for target in targets for t in target], device=self.device)
            scores_M, greedy_M = self._score(hidden_BTD.flatten(0, 1)[position_M], target_M)
            sizes = [len(target) for target in targets]
            parts = torch.split(scores_M, sizes), torch.split(greedy_M, sizes)
            for number, scores, greedy in zip(numbers, *parts, strict=True):
                results[number] = float(scores.sum()), bool(greedy.all())
        return results

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
    """Stops a generation whose logits are NaN: greedy search would silently choose token 0."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(scores.isnan().any()):
            raise NonFiniteLossError(NOT_FINITE.format("logits are"))
        return scores


def padded(rows: Sequence[Sequence[int]], value: int, *, side: str) -> Tensor:
    """Return rows of tokens as one tensor [rows, longest row]."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


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
    return int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
