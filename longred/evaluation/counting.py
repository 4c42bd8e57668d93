"""How many tokens prompts take, exactly: what many of them share is encoded once."""

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from longred.errors import PreflightError
from longred.evaluation.prompts import count_tokens

Counter = Callable[[Sequence[str]], list[int]]
"""Returns the number of tokens of each of many prompts, BOS included."""

_PROBE = "One of the special magic numbers for misty-anvil is: 1234567.\nVAR ABCDE = 12345 \n"

# Where a text always splits, whatever stands around, and how what is between two fronts looks.
_LINE_FRONT = re.compile(r"(?<=\S\n)(?=\S)")
_WORD_FRONT = re.compile(r" (?<=\S )(?=\S)")
_PART = re.compile(
    r"[^A-Za-z0-9]*(?:[A-Za-z]+|[0-9]+)"
    r"(?:(?![-.])[^A-Za-z0-9]+(?:[A-Za-z]+|[0-9]+|\Z))*"
    r"|[^A-Za-z0-9]+\Z"
)
_JOINING_LINES = re.compile(r"\n(?:\s|(?<=\s\n))")

_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}
# Pieces that are remembered; the characters of a line, and the parts that are encoded at a time.
_MAX_PIECES, _MAX_LINE, _MAX_PARTS = 2**18, 512, 512


def token_counter(tokenizer: Any) -> Counter:
    """Return what counts the tokens of many prompts as `count_tokens` counts those of one.

    A fast tokenizer encodes them together on all cores, without what transformers builds around
    each. Where it surely splits between lines, words and their parts, each of these is encoded
    once; the first prompt of several is encoded as a whole too, and if that gives another number,
    all are from then on. A tokenizer that counts otherwise in a batch, or has no such call, is
    asked for one prompt at a time.

    Raises:
        PreflightError: the tokenizer makes no tokens of text.
    """
    expected = count_tokens(tokenizer, _PROBE)
    num_bos = int(tokenizer.bos_token_id is not None)
    if expected == num_bos:
        raise PreflightError(
            f"{getattr(tokenizer, 'name_or_path', '') or 'tokenizer'}: makes no tokens of text, so "
            "no length can be measured; give a model folder with a complete tokenizer.json"
        )
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)

    def together(texts: Sequence[str]) -> list[int]:
        encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) + num_bos for encoding in encoded]

    if not hasattr(backend, "encode_batch_fast") or together([_PROBE]) != [expected]:
        return lambda texts: [count_tokens(tokenizer, text) for text in texts]
    return _Checked(_Pieces(backend), together, num_bos) if splits_at_fronts(backend) else together


def splits_at_fronts(backend: Any) -> bool:
    """Return whether no token of a tokenizer reaches over the front of a line, word or part.

    The patterns of GPT-2, Llama-3 and Qwen2 always split behind a single line end, and in front of
    a single space, between two characters that are no white space; between an ASCII letter and a
    digit; and at a hyphen or dot behind either, whatever stands around. True for these alone,
    and only if no added token and no normalizer joins what they split.

    Args:
        backend: a tokenizer of the tokenizers package.
    """
    parts = json.loads(backend.to_str())
    first = parts["pre_tokenizer"] or {}
    steps = [step for step in first.get("pretokenizers", [first]) if step.get("type") != "Digits"]
    is_bytes = bool(steps) and steps[-1].get("type") == "ByteLevel"
    if not is_bytes or steps[-1]["add_prefix_space"]:
        return False
    splits = steps[:-1]
    return (
        bool(splits or steps[-1]["use_regex"])
        and all(_is_known_split(step) for step in splits)
        and (parts["normalizer"] or {"type": "NFC"})["type"] == "NFC"
        and not any(_may_join(token) for token in parts["added_tokens"])
    )


def _is_known_split(step: Mapping[str, Any]) -> bool:
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return False
    return step["pattern"].get("Regex") in _PATTERNS


def _may_join(token: Mapping[str, Any]) -> bool:
    """Return whether an added token may reach over a front, or depends on what is around it."""
    text = token["content"]
    if token["lstrip"] or token["rstrip"] or token["single_word"]:
        return True
    fronts = _LINE_FRONT.search(text) or _WORD_FRONT.search(text) or re.match(r" (?! )", text)
    return bool(fronts) or len(_PART.findall(text)) > 1


class _Checked:
    """Counts by pieces, until a prompt encoded as a whole gives another number."""

    def __init__(self, pieces: Counter, whole: Counter, num_bos: int) -> None:
        self._pieces, self._whole, self._num_bos = pieces, whole, num_bos
        self._agree = True

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        if self._agree:
            sizes = [size + self._num_bos for size in self._pieces(texts)]
            self._agree = len(texts) < 2 or self._whole(texts[:1]) == sizes[:1]
        return sizes if self._agree else self._whole(texts)


class _Sizes(dict[str, int]):
    """Piece → its tokens; what is not known counts as none and is noted in `asked`."""

    asked: list[str]

    def __missing__(self, piece: str) -> int:
        self.asked.append(piece)
        return 0


class _Pieces:
    """Counts tokens by line, word and part: each is encoded once and remembered.

    Args:
        backend: a tokenizer that splits at fronts.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._separator = _separator(backend)
        # Lines are known without their ends, words without the spaces in front of them.
        self._known = {kind: _Sizes() for kind in ("lines", "heads", "words", "parts")}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without BOS."""
        for known in self._known.values():
            if len(known) > _MAX_PIECES:
                known.clear()
        found = [_lines(text) for text in texts]
        # The last line has no end, and is another in every prompt.
        lasts = self._by_words([lines.pop() for lines in found])
        sums = self._sums("lines", found, lambda fresh: self._by_words([f"{x}\n" for x in fresh]))
        return [*map(operator.add, sums, lasts)]

    def _by_words(self, lines: Sequence[str]) -> list[int]:
        heads = []

        def rests() -> Iterator[list[str]]:
            for line in lines:
                words = _words(line)
                # In front of the first there is no space.
                heads.append(words.pop(0))
                yield words

        sums = self._sums("words", rests(), lambda fresh: self._by_parts([f" {x}" for x in fresh]))
        return [*map(operator.add, sums, self._sums("heads", zip(heads), self._by_parts))]

    def _by_parts(self, words: Sequence[str]) -> list[int]:
        return self._sums("parts", map(_PART.findall, words), self._by_encoding)

    def _sums(
        self,
        kind: str,
        groups: Iterable[Iterable[str]],
        learn: Callable[[Sequence[str]], list[int]],
    ) -> list[int]:
        """Return the tokens of each group of pieces, learning those that are not known.

        Groups are taken one by one: many small lists at a time would keep the collector busy.
        """
        known = self._known[kind]
        asked: list[str] = []
        known.asked = asked
        size, sums, ends = known.__getitem__, [], []
        for group in groups:
            sums.append(sum(map(size, group)))
            ends.append(len(asked))
        if asked:
            fresh = [*dict.fromkeys(asked)]
            known.update(zip(fresh, learn(fresh), strict=True))
            for number, (start, end) in enumerate(pairwise([0, *ends])):
                if start < end:
                    sums[number] += sum(map(size, asked[start:end]))
            if kind == "lines":
                for line in fresh:
                    if len(line) > _MAX_LINE:
                        del known[line]
        return sums

    def _by_encoding(self, parts: Sequence[str]) -> list[int]:
        chunks = (parts[first : first + _MAX_PARTS] for first in range(0, len(parts), _MAX_PARTS))
        return [size for chunk in chunks for size in self._encoded(chunk)]

    def _encoded(self, parts: Sequence[str]) -> list[int]:
        """Return the number of tokens of parts, encoded as one text where they can be told apart.

        That takes half the time of a text for each.
        """
        if self._separator is not None:
            text, number = self._separator
            (encoding,) = self._backend.encode_batch_fast(
                [text.join(parts)], add_special_tokens=False
            )
            places = [place for place, token in enumerate(encoding.ids) if token == number]
            if len(places) == len(parts) - 1:
                ends = zip([-1, *places], [*places, len(encoding)], strict=True)
                return [end - start - 1 for start, end in ends]
        encoded = self._backend.encode_batch_fast(list(parts), add_special_tokens=False)
        return [len(encoding) for encoding in encoded]


def _lines(text: str) -> list[str]:
    """Return what is between the fronts of lines, without the line ends there."""
    if _JOINING_LINES.search(text) is None and text[:1] != "\n" != text[-1:]:
        return text.split("\n")
    *lines, last = _LINE_FRONT.split(text)
    return [*(line[:-1] for line in lines), last]


def _words(line: str) -> list[str]:
    """Return what is between the fronts of words, without the spaces there."""
    bare = line.removesuffix("\n")
    # All white space but the space is unprintable.
    if not bare.isprintable() or "  " in bare or bare.startswith(" ") or bare.endswith(" "):
        return _WORD_FRONT.split(line)
    return line.split(" ")


def _separator(backend: Any) -> tuple[str, int] | None:
    """Return an added token that stands for itself wherever it is, and its id."""
    if backend.encode_special_tokens:
        return None
    for number, token in backend.get_added_tokens_decoder().items():
        if token.special and not token.normalized:
            return token.content, number
    return None
