"""How many tokens prompts take, exactly: what many of them share is encoded once."""

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from longred.errors import PreflightError
from longred.evaluation.prompts import count_tokens


@dataclass(frozen=True, slots=True)
class Listing:
    """A prompt with a long list in it, which is joined only where its text is needed.

    Attributes:
        before: text in front of the list.
        words: two or more, without white space; in the text there is one space between them.
        after: text behind the list.
    """

    before: str
    words: Sequence[str]
    after: str

    def __str__(self) -> str:
        """Return the text."""
        return f"{self.before}{' '.join(self.words)}{self.after}"

    def frame(self) -> str:
        """Return the text without the words between the first and the last."""
        return f"{self.before}{self.words[0]} {self.words[-1]}{self.after}"


Prompt = str | Listing
Counter = Callable[[Sequence[Prompt]], list[int]]
"""Returns the number of tokens of each of many prompts, BOS included."""

_PROBE = "One of the special magic numbers for misty-anvil is: 1234567.\nVAR ABCDE = 12345 \n"


def _part(other: str, end: str) -> re.Pattern[str]:
    """Return what is between fronts within a word: `other` is no letter or digit."""
    run = "(?:[A-Za-z]+|[0-9]+)"
    return re.compile(rf" ?{other}*{run}(?:(?![-.]){other}+(?:{run}|{end}))*| ?{other}+{end}")


# Where a text always splits, whatever stands around, and what is between two fronts.
_LINE_FRONT = re.compile(r"\n(?<=\S\n)(?=\S)")
_WORD_FRONT = re.compile(r" (?<=\S )(?=\S)")
_PART = _part("[^A-Za-z0-9]", r"\Z")
_PLAIN_PART = _part("[^A-Za-z0-9 ]", r"(?= |\Z)")
# Behind a letter or digit, a line end is a token of its own.
_BEFORE_LINE_END = re.compile(r" ?[!-~]*[A-Za-z0-9]")

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
    once; now and then a prompt is encoded as a whole too, and if that gives another number, all are
    from then on. A tokenizer that counts otherwise in a batch, or has no such call, is
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

    def together(prompts: Sequence[Prompt]) -> list[int]:
        encoded = backend.encode_batch_fast([*map(str, prompts)], add_special_tokens=False)
        return [len(encoding) + num_bos for encoding in encoded]

    if not hasattr(backend, "encode_batch_fast") or together([_PROBE]) != [expected]:
        return lambda prompts: [count_tokens(tokenizer, str(prompt)) for prompt in prompts]
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
    """Counts by pieces, until a prompt encoded as a whole gives another number.

    The longest of the first, second, fourth and so on of the calls is encoded as a whole.
    """

    def __init__(self, pieces: Counter, whole: Counter, num_bos: int) -> None:
        self._pieces, self._whole, self._num_bos = pieces, whole, num_bos
        self._agree, self._num_calls = True, 0

    def __call__(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt."""
        if not prompts or not self._agree:
            return self._whole(prompts)
        sizes = [size + self._num_bos for size in self._pieces(prompts)]
        self._num_calls += 1
        if self._num_calls.bit_count() == 1:
            longest = sizes.index(max(sizes))
            self._agree = self._whole([prompts[longest]]) == [sizes[longest]]
        return sizes if self._agree else self._whole(prompts)


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
        self._line_end = backend.encode("\n", add_special_tokens=False).ids[0]
        # Lines are known without their ends, words without the spaces in front of them.
        self._known = {kind: _Sizes() for kind in ("lines", "words", "parts")}

    def __call__(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt, without BOS."""
        for known in self._known.values():
            if len(known) > _MAX_PIECES:
                known.clear()
        texts = (prompt if isinstance(prompt, str) else prompt.frame() for prompt in prompts)
        found = [_LINE_FRONT.split(text) for text in texts]
        # The last line has no end, and is another in every prompt.
        lasts = self._by_lines([lines.pop() for lines in found])
        sums = self._sums("lines", found, lambda fresh: self._by_lines([f"{x}\n" for x in fresh]))
        lists = (() if isinstance(prompt, str) else prompt.words[1:-1] for prompt in prompts)
        inner = self._sums("words", lists, self._by_parts)
        return [*map(sum, zip(sums, lasts, inner, strict=True))]

    def _by_lines(self, lines: Sequence[str]) -> list[int]:
        """Return the tokens of lines: plain and short ones by their parts, others by their words.

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
                # In front of the first there is no space.
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
        """Return the tokens of parts; many that a line end surely tells apart are one text."""
        sizes: dict[str, int] = {}
        plain = [part for part in parts if _BEFORE_LINE_END.fullmatch(part)]
        for first in range(0, len(plain), _MAX_PARTS):
            chunk = plain[first : first + _MAX_PARTS]
            (encoding,) = self._backend.encode_batch_fast(
                ["\n".join(chunk)], add_special_tokens=False
            )
            tokens = encoding.ids
            ends = [place for place, token in enumerate(tokens) if token == self._line_end]
            if len(ends) == len(chunk) - 1:
                places = pairwise([-1, *ends, len(tokens)])
                sizes.update(zip(chunk, (end - start - 1 for start, end in places), strict=True))
        others = [part for part in parts if part not in sizes]
        encoded = self._backend.encode_batch_fast(others, add_special_tokens=False)
        sizes.update(zip(others, map(len, encoded), strict=True))
        return [sizes[part] for part in parts]


def _shared(lines: Sequence[str]) -> int:
    """Return where the last word begins that all lines have in common from their start on."""
    if not lines:
        return 0
    pairs = enumerate(zip(min(lines), max(lines), strict=False))
    end = next((place for place, (one, other) in pairs if one != other), 0)
    return max(0, lines[0].rfind(" ", 0, end))


def _is_plain(line: str) -> bool:
    """Return whether every space of a line is the front of a word."""
    bare = line.removesuffix("\n")
    # All white space but the space is unprintable.
    return bare.isprintable() and "  " not in bare and bare[:1] != " " != bare[-1:]
