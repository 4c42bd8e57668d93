"""Held-out documents cut at token boundaries, so that samples fit the original window."""

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longred.evaluation.counting import encode


@dataclass(frozen=True)
class Text:
    """One held-out document.

    Attributes:
        path: its path in the data.
        text: the raw text.
        starts: offset of the first character of each token.
        ends: offset behind the last character of each token.
    """

    path: str
    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def tokens_before(self, place: int) -> int:
        """Return the number of tokens that start before an offset."""
        return bisect_left(self.starts, place)

    def passage_start(self, end: int, num_tokens: int) -> int:
        """Return the first line start at most `num_tokens` tokens before `end`, or `end` itself."""
        first = self.tokens_before(end) - num_tokens
        if first <= 0:
            return 0
        newline = self.text.find("\n", self.starts[first] - 1, end)
        return end if newline < 0 else newline + 1

    def after(self, start: int, num_tokens: int) -> str:
        """Return the text of the next `num_tokens` tokens; less at the end of the document."""
        first = self.tokens_before(start)
        last = min(first + num_tokens, len(self.ends)) - 1
        return self.text[start : self.ends[last]] if last >= first else ""


class Passages:
    """The held-out documents that samples are cut from.

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
        """Draw the maximum length of a context: 40 to 85 percent of the window."""
        return rng.randint(self.window * 2 // 5, self.window * 17 // 20)

    def matches(self, pattern: re.Pattern[str]) -> list[tuple[Text, int]]:
        """Return the document and the offset of every match of a pattern."""
        return [
            (text, match.start()) for text in self.texts for match in pattern.finditer(text.text)
        ]


class Context:
    """The text before an answer.

    Args:
        passages: provides tokenizer and window.
        text: the text, without trailing white space.
    """

    def __init__(self, passages: Passages, text: str) -> None:
        self.passages, self.text = passages, text
        self._tokens = encode(passages.tokenizer, text)

    def size_of(self, answer: str) -> int | None:
        """Return the number of tokens of an answer after this context.

        None if the likelihood of the answer given the context is not defined: the answer changes
        the context's own tokens, is not a token of its own, or does not fit the window.
        """
        tokens = encode(self.passages.tokenizer, self.text + answer)
        size = len(tokens) - len(self._tokens)
        if size < 1 or len(tokens) > self.passages.window:
            return None
        return size if tokens[: len(self._tokens)] == self._tokens else None
