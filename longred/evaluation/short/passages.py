"""Held-out documents cut at token boundaries, so that short tasks fit the original window."""

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longred.evaluation.counting import count_tokens, encode


@dataclass(frozen=True)
class Text:
    """One held-out document.

    Attributes:
        path: where it came from.
        text: its raw text.
        starts: character at which each token starts.
        ends: character after which each token ends.
    """

    path: str
    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def tokens_before(self, place: int) -> int:
        """Return the number of tokens that start before a character."""
        return bisect_left(self.starts, place)

    def passage_start(self, end: int, num_tokens: int) -> int:
        """Return the first line start at most `num_tokens` tokens before `end`, or `end` itself."""
        first = self.tokens_before(end) - num_tokens
        if first <= 0:
            return 0
        newline = self.text.find("\n", self.starts[first] - 1, end)
        return end if newline < 0 else newline + 1

    def after(self, start: int, num_tokens: int) -> str:
        """Return the text of the `num_tokens` tokens from a character on; shorter at the end."""
        first = self.tokens_before(start)
        last = min(first + num_tokens, len(self.ends)) - 1
        return self.text[start : self.ends[last]] if last >= first else ""


class Passages:
    """The held-out documents that short tasks are cut from.

    Args:
        documents: path and text of each.
        tokenizer: the model's tokenizer.
        window: tokens that context and answer may take together, BOS included.
    """

    def __init__(
        self, documents: Sequence[tuple[str, str]], tokenizer: Any, *, window: int
    ) -> None:
        self.tokenizer = tokenizer
        self.window = window
        self.texts = [self._read(path, text) for path, text in documents if text.strip()]

    def _read(self, path: str, text: str) -> Text:
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        starts, ends = zip(*encoded["offset_mapping"], strict=True)
        return Text(path, text, starts, ends)

    def context_tokens(self, rng: random.Random) -> int:
        """Draw how long a context may be: between 40 and 85 percent of the window."""
        return rng.randint(self.window * 2 // 5, self.window * 17 // 20)

    def context(self, text: str) -> "Context":
        """Return a text that answers are put behind."""
        return Context(self, text)

    def fits(self, context: str, num_new_tokens: int) -> bool:
        """Return whether a context leaves room for an answer of `num_new_tokens` tokens."""
        return count_tokens(self.tokenizer, context) + num_new_tokens <= self.window

    def shuffled(
        self, sites: Sequence[tuple[int, int]], rng: random.Random
    ) -> Iterator[tuple[Text, int]]:
        """Yield places of documents in random order, each once.

        Args:
            sites: number of the document and a character in it.
            rng: decides the order.
        """
        order = list(sites)
        rng.shuffle(order)
        for document, place in order:
            yield self.texts[document], place


class Context:
    """What stands before an answer.

    Args:
        passages: whose tokenizer and window count.
        text: the text, which ends in no white space.
    """

    def __init__(self, passages: Passages, text: str) -> None:
        self.passages, self.text = passages, text
        self._tokens = encode(passages.tokenizer, text)

    def size_of(self, answer: str) -> int | None:
        """Return how many tokens an answer takes behind this context.

        None where it would change the context's own tokens, be no token of its own, or not fit the
        window: the likelihood of such an answer is not defined by the context.
        """
        tokens = encode(self.passages.tokenizer, self.text + answer)
        size = len(tokens) - len(self._tokens)
        if size < 1 or len(tokens) > self.passages.window:
            return None
        return size if tokens[: len(self._tokens)] == self._tokens else None


def choice_sample(
    rng: random.Random, context: str, answer: str, others: Sequence[str]
) -> dict[str, Any]:
    """Return a multiple-choice sample with the answers in random order."""
    choices = [answer, *others]
    rng.shuffle(choices)
    return {"input": context, "choices": choices, "answer": choices.index(answer)}
