"""Finds documents that share 13 consecutive words with the evaluation texts.

Words are the matches of `\\w+` in lower-case text. The length of 13 is from Brown et al., Language
Models are Few-Shot Learners, appendix C. Shorter texts cannot be detected.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.files import content_digest
from longred.data.finding import TEXT_SUFFIXES, Files, find_files, suffix_of
from longred.errors import ConfigError

NUM_WORDS = 13
KEY = "data.decontaminate"


class EvaluationTexts:
    """A searchable set of the n-grams of 13 words of some texts.

    Args:
        texts: the evaluation texts.
    """

    def __init__(self, texts: Iterator[str]) -> None:
        self._ids: dict[str, int] = {}
        hashes = [np.zeros(0, dtype=np.uint64)]
        for text in texts:
            words = _words(text)
            if len(words) >= NUM_WORDS:
                ids = [self._ids.setdefault(word, len(self._ids) + 1) for word in words]
                hashes.append(_ngram_hashes(ids))
        self._hashes = np.unique(np.concatenate(hashes))

    def __len__(self) -> int:
        """Return the number of distinct n-grams."""
        return len(self._hashes)

    def find(self, text: str) -> str | None:
        """Return the first n-gram of a text that is in the set, or None."""
        words = _words(text)
        if len(words) < NUM_WORDS:
            return None
        ids = [self._ids.get(word, 0) for word in words]
        hashes = _ngram_hashes(ids)
        # An n-gram with a word that the evaluation texts lack cannot be in the set.
        num_unknown = np.cumsum(np.array([0, *(id == 0 for id in ids)]))
        known = np.flatnonzero(num_unknown[NUM_WORDS:] == num_unknown[:-NUM_WORDS])
        positions = np.searchsorted(self._hashes, hashes[known])
        positions[positions == len(self._hashes)] = 0
        hits = known[self._hashes[positions] == hashes[known]]
        return " ".join(words[hits[0] : hits[0] + NUM_WORDS]) if len(hits) else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _ngram_hashes(ids: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Return the hash of each n-gram: a polynomial of its mixed word ids, modulo 2^64."""
    words = np.array(ids, dtype=np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    count = len(words) - NUM_WORDS + 1
    total = np.zeros(count, dtype=np.uint64)
    for start in range(NUM_WORDS):
        total = total * np.uint64(0x9E3779B97F4A7C15) + words[start : start + count]
    return total


@functools.lru_cache(maxsize=2)
def evaluation_texts(patterns: tuple[str, ...]) -> EvaluationTexts:
    """Return the texts of some paths; cached, so that each process reads them once.

    Raises:
        ConfigError: a path has no readable files, or no text has 13 words.
    """
    found = EvaluationTexts(
        text for files in _find(patterns) for path in files.sizes for text in _texts(files, path)
    )
    if not len(found):
        raise ConfigError(f"{KEY}: no text of {NUM_WORDS} words or more in {', '.join(patterns)}")
    return found


def evaluation_digest(config: DataConfig) -> str:
    """Return a digest of the files of `data.decontaminate`."""
    digests = [content_digest(files) for files in _find(config.decontaminate)]
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()


def _find(patterns: Sequence[str]) -> list[Files]:
    return [find_files(pattern, f"{KEY}.{n}") for n, pattern in enumerate(patterns)]


def _texts(files: Files, path: str) -> Iterator[str]:
    """Yield the texts of a file: all strings of its JSON rows, or a text file as a whole."""
    with files.open(path) as file:
        raw = file.read()
    suffix = suffix_of(path)
    if suffix != ".jsonl":
        if suffix not in TEXT_SUFFIXES:
            raise ConfigError(f"{KEY}: {path} must be .jsonl or text")
        yield raw.decode("utf-8", errors="replace")
        return
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            try:
                yield from _strings(json.loads(line))
            except ValueError as error:
                raise ConfigError(f"{KEY}: {path}:{number} is not JSON ({error})") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
