"""Tokenisation of prompts, and exact token counts of many prompts with shared text.

Every module encodes prompts with `encode`, so that sizes measured while samples are frozen hold
while they are evaluated. `token_counter` returns the same counts for many prompts at once and
encodes text that they share only once; RULER's generators fit prompts to a length with it.
"""

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from longred.data.tokens import leading_ids
from longred.errors import PreflightError


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenise a prompt; prepend what the tokenizer puts before a text, usually BOS or nothing."""
    # verbose=False: no warning about prompts beyond the window, which callers check themselves.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*prefix_ids(tokenizer), *ids]


def prefix_ids(tokenizer: Any) -> list[int]:
    """Return the control tokens that a tokenizer puts before a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return [] if backend is None else leading_ids(backend)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Count the tokens of a prompt, those before the text included."""
    return len(encode(tokenizer, text))


@dataclass(frozen=True, slots=True)
class Listing:
    """A prompt that contains a long list of words, joined only when its text is needed.

    Attributes:
        before: text before the list.
        words: at least two, without white space; the text joins them with one space.
        after: text after the list.
    """

    before: str
    words: Sequence[str]
    after: str

    def __str__(self) -> str:
        """Return the whole text."""
        return f"{self.before}{' '.join(self.words)}{self.after}"

    def frame(self) -> str:
        """Return the text with only the first and the last word of the list."""
        return f"{self.before}{self.words[0]} {self.words[-1]}{self.after}"


Prompt = str | Listing
Counter = Callable[[Sequence[Prompt]], list[int]]
"""Returns the number of tokens of each prompt, as `count_tokens` does."""

_PROBE = "One of the special magic numbers for misty-anvil is: 1234567.\nVAR ABCDE = 12345 \n"


def _part(other: str, end: str) -> re.Pattern[str]:
    """Return the pattern of a word's parts; `other` matches anything but a letter or digit."""
    run = "(?:[A-Za-z]+|[0-9]+)"
    return re.compile(rf" ?{other}*{run}(?:(?![-.]){other}+(?:{run}|{end}))*| ?{other}+{end}")


# A front is a position where every supported pre-tokenizer splits, whatever the text around it.
# A part is the text between two fronts within a word.
_LINE_FRONT = re.compile(r"\n(?<=\S\n)(?=\S)")
_WORD_FRONT = re.compile(r" (?<=\S )(?=\S)")
_PART = _part("[^A-Za-z0-9]", r"\Z")
_PLAIN_PART = _part("[^A-Za-z0-9 ]", r"(?= |\Z)")
# After a letter or digit, a line end is a separate token.
_BEFORE_LINE_END = re.compile(r" ?[!-~]*[A-Za-z0-9]")

_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}
# Cached pieces per kind; characters of a cached line; parts per encoded text.
_MAX_PIECES, _MAX_LINE, _MAX_PARTS = 2**18, 512, 512


def token_counter(tokenizer: Any) -> Counter:
    """Return a function that counts the tokens of many prompts exactly as `count_tokens` does.

    - A fast tokenizer encodes all prompts in one call, on all cores.
    - If its pre-tokenizer is known to split at fronts (see `splits_at_fronts`), each line, word
      and part is encoded once and cached. Some prompts are also encoded whole; after the first
      difference all of them are.
    - A tokenizer without batch encoding, or with other counts in a batch, encodes one prompt at a
      time.

    Raises:
        PreflightError: the tokenizer returns no tokens for text.
    """
    expected = count_tokens(tokenizer, _PROBE)
    num_bos = len(prefix_ids(tokenizer))
    if expected == num_bos:
        raise PreflightError(
            f"{getattr(tokenizer, 'name_or_path', '') or 'tokenizer'}: returns no tokens for text, "
            "so no length can be measured; give a model folder with a complete tokenizer.json"
        )
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)

    def together(prompts: Sequence[Prompt]) -> list[int]:
        encoded = backend.encode_batch_fast([*map(str, prompts)], add_special_tokens=False)
        return [len(encoding) + num_bos for encoding in encoded]

    if not hasattr(backend, "encode_batch_fast") or together([_PROBE]) != [expected]:
        return lambda prompts: [count_tokens(tokenizer, str(prompt)) for prompt in prompts]
    if not splits_at_fronts(backend):
        return together
    return _checked(_Pieces(backend), together, num_bos)


def splits_at_fronts(backend: Any) -> bool:
    """Return whether no token of a tokenizer crosses the front of a line, word or part.

    The patterns of GPT-2, Llama-3 and Qwen2 always split after a single line end and before a
    single space, if both neighbours are not white space; between an ASCII letter and a digit; and
    at a hyphen or dot after either. True for these patterns only, and only if no added token and no
    normalizer joins text across a front.

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
    """Return whether an added token may cross a front, or depends on the text around it."""
    text = token["content"]
    if token["lstrip"] or token["rstrip"] or token["single_word"]:
        return True
    fronts = _LINE_FRONT.search(text) or _WORD_FRONT.search(text) or re.match(r" (?! )", text)
    return bool(fronts) or len(_PART.findall(text)) > 1


def _checked(pieces: Counter, whole: Counter, num_bos: int) -> Counter:
    """Return a counter by pieces that falls back to `whole` after the first difference.

    Checks the longest prompt of the first, second, fourth, eighth … call.
    """
    agree, num_calls = True, 0

    def count(prompts: Sequence[Prompt]) -> list[int]:
        nonlocal agree, num_calls
        if not prompts or not agree:
            return whole(prompts)
        sizes = [size + num_bos for size in pieces(prompts)]
        num_calls += 1
        if num_calls.bit_count() == 1:
            longest = sizes.index(max(sizes))
            agree = whole([prompts[longest]]) == [sizes[longest]]
        return sizes if agree else whole(prompts)

    return count


class _Sizes(dict[str, int]):
    """Piece -> its number of tokens; an unknown piece counts 0 and is added to `missing`."""

    missing: list[str]

    def __missing__(self, piece: str) -> int:
        self.missing.append(piece)
        return 0


class _Pieces:
    """Counts tokens by line, word and part; each is encoded once and cached.

    Args:
        backend: a tokenizer that splits at fronts.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._line_end = backend.encode("\n", add_special_tokens=False).ids[0]
        # Keys: lines without their line end, words without the space before them.
        self._known = {kind: _Sizes() for kind in ("lines", "words", "parts")}

    def __call__(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt, without BOS."""
        for known in self._known.values():
            if len(known) > _MAX_PIECES:
                known.clear()
        texts = (prompt if isinstance(prompt, str) else prompt.frame() for prompt in prompts)
        found = [_LINE_FRONT.split(text) for text in texts]
        # The last line has no line end and differs in every prompt: it is not cached.
        lasts = self._by_lines([lines.pop() for lines in found])
        sums = self._sums("lines", found, lambda fresh: self._by_lines([f"{x}\n" for x in fresh]))
        lists = (() if isinstance(prompt, str) else prompt.words[1:-1] for prompt in prompts)
        inner = self._sums("words", lists, self._by_parts)
        return [*map(sum, zip(sums, lasts, inner, strict=True))]

    def _by_lines(self, lines: Sequence[str]) -> list[int]:
        """Count short plain lines by parts, others by words.

        The beginning that all plain lines share is counted once.
        """
        plain = [line for line in lines if len(line) <= _MAX_LINE and _is_plain(line)]
        shared = _shared(plain)
        (beginning,) = self._by_parts([plain[0][:shared]] if shared else [""], front="")
        rests = (_PLAIN_PART.findall(line, shared) for line in plain)
        found = self._sums("parts", rests, self._by_encoding)
        sizes = {line: beginning + size for line, size in zip(plain, found, strict=True)}
        others = [line for line in lines if line not in sizes]
        sizes.update(zip(others, self._by_words(others), strict=True))
        return [sizes[line] for line in lines]

    def _by_words(self, lines: Sequence[str]) -> list[int]:
        heads = []

        def rests() -> Iterator[list[str]]:
            for line in lines:
                words = line.split(" ") if _is_plain(line) else _WORD_FRONT.split(line)
                # No space precedes the first word.
                heads.append(words.pop(0))
                yield words

        sums = self._sums("words", rests(), self._by_parts)
        return [*map(operator.add, sums, self._by_parts(heads, front=""))]

    def _by_parts(self, words: Sequence[str], front: str = " ") -> list[int]:
        found = (_PART.findall(front + word) for word in words)
        return self._sums("parts", found, self._by_encoding)

    def _sums(
        self,
        kind: str,
        groups: Iterable[Iterable[str]],
        count: Callable[[Sequence[str]], list[int]],
    ) -> list[int]:
        """Return the number of tokens of each group of pieces; count and cache unknown pieces.

        Groups are consumed one by one: many small lists alive at once slow the garbage collector.
        """
        known = self._known[kind]
        missing: list[str] = []
        known.missing = missing
        size, sums, ends = known.__getitem__, [], []
        for group in groups:
            sums.append(sum(map(size, group)))
            ends.append(len(missing))
        if missing:
            fresh = [*dict.fromkeys(missing)]
            known.update(zip(fresh, count(fresh), strict=True))
            for number, (start, end) in enumerate(pairwise([0, *ends])):
                if start < end:
                    sums[number] += sum(map(size, missing[start:end]))
            if kind == "lines":
                for line in fresh:
                    if len(line) > _MAX_LINE:
                        del known[line]
        return sums

    def _by_encoding(self, parts: Sequence[str]) -> list[int]:
        """Count parts; encode many as one text, joined by line ends, where these stay separate."""
        sizes: dict[str, int] = {}
        plain = [part for part in parts if _BEFORE_LINE_END.fullmatch(part)]
        for first in range(0, len(plain), _MAX_PARTS):
            chunk = plain[first : first + _MAX_PARTS]
            (encoding,) = self._backend.encode_batch_fast(
                ["\n".join(chunk)], add_special_tokens=False
            )
            tokens = encoding.ids
            ends = [index for index, token in enumerate(tokens) if token == self._line_end]
            if len(ends) == len(chunk) - 1:
                spans = pairwise([-1, *ends, len(tokens)])
                sizes.update(zip(chunk, (end - start - 1 for start, end in spans), strict=True))
        others = [part for part in parts if part not in sizes]
        encoded = self._backend.encode_batch_fast(others, add_special_tokens=False)
        sizes.update(zip(others, map(len, encoded), strict=True))
        return [sizes[part] for part in parts]


def _shared(lines: Sequence[str]) -> int:
    """Return the index of the last space within the beginning that all lines share."""
    if not lines:
        return 0
    pairs = enumerate(zip(min(lines), max(lines), strict=False))
    end = next((index for index, (one, other) in pairs if one != other), 0)
    return max(0, lines[0].rfind(" ", 0, end))


def _is_plain(line: str) -> bool:
    """Return whether every space of a line is a word front."""
    bare = line.removesuffix("\n")
    # isprintable() is false for all white space but the space.
    return bare.isprintable() and "  " not in bare and bare[:1] != " " != bare[-1:]
