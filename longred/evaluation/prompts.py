"""How a prompt becomes tokens: the same way where it is measured and where it is asked."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from longred.errors import PreflightError

Counter = Callable[[Sequence[str]], list[int]]
"""Returns the number of tokens of each of many prompts, BOS included."""

_PROBE = "One of the special magic numbers for misty-anvil is: 1234567.\nVAR ABCDE = 12345 \n"

_WORD_FRONT = re.compile(r"(?<=\S) (?=\S)")
_MARK_FRONT = re.compile(r"(?<=[A-Za-z0-9])(?=[-.])")
_MAX_WORDS = 2**18
_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a prompt, behind BOS where the tokenizer has one.

    Whether a tokenizer adds BOS by itself differs between models; training rows begin with it.
    """
    # Not verbose: whether a prompt fits the window is checked where it matters.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return list(ids) if bos is None else [int(bos), *ids]


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a prompt, BOS included."""
    return len(encode(tokenizer, text))


def token_counter(tokenizer: Any) -> Counter:
    """Return what counts the tokens of many prompts as `count_tokens` counts those of one.

    A fast tokenizer encodes them together on all cores, without what transformers builds around
    each; where it surely splits in front of words, every word but once. One that counts otherwise
    there, or has no such call, is asked for one prompt at a time.

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
    if not splits_before_words(backend):
        return together
    return _WordCounter(together, num_bos)


def splits_before_words(backend: Any) -> bool:
    """Return whether no token of a tokenizer reaches over the front of a word or mark.

    At a single space between two characters that are none, and at a hyphen or dot behind an ASCII
    letter or digit, the patterns of GPT-2, Llama-3 and Qwen2 always split, whatever stands around.
    True for these alone, and only if no added token and no normalizer joins what they split.

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
    return bool(_WORD_FRONT.search(text) or _MARK_FRONT.search(text) or re.match(r" (?! )", text))


class _WordCounter:
    """Counts tokens word by word: each is encoded once, a compound in parts, and remembered."""

    def __init__(self, together: Counter, num_bos: int) -> None:
        self._together, self._num_bos = together, num_bos
        self._words: dict[str, int] = {}
        self._parts: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        words = [_WORD_FRONT.split(text) for text in texts]
        # The first word of a text has no space in front of it.
        firsts = self._together([found.pop(0) for found in words])
        if len(self._words) > _MAX_WORDS:
            self._words, self._parts = {}, {}
        self._learn([*set(chain.from_iterable(words)).difference(self._words)])
        size = self._words.__getitem__
        return [first + sum(map(size, found)) for first, found in zip(firsts, words, strict=True)]

    def _learn(self, words: Sequence[str]) -> None:
        parts = [_MARK_FRONT.split(f" {word}") for word in words]
        fresh = [*set(chain.from_iterable(parts)).difference(self._parts)]
        sizes = (size - self._num_bos for size in self._together(fresh))
        self._parts.update(zip(fresh, sizes, strict=True))
        size = self._parts.__getitem__
        self._words.update(
            (word, sum(map(size, found))) for word, found in zip(words, parts, strict=True)
        )
