"""Finds documents that hold a run of words of the evaluation's texts.

Words are what `\\w+` matches in lower-case text; a run is 13 of them, as in Brown et al., Language
Models are Few-Shot Learners, appendix C. Texts with fewer words cannot be looked for.
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
from longred.data.files import Files, content_digest, find_files
from longred.errors import ConfigError

NUM_WORDS = 13
_WORD = re.compile(r"\w+")
_FACTOR = 0x9E3779B97F4A7C15
KEY = "data.decontaminate"


class EvaluationTexts:
    """The runs of words of some texts, ready to be looked for.

    Args:
        texts: the evaluation's texts.
    """

    def __init__(self, texts: Iterator[str]) -> None:
        self._ids: dict[str, int] = {}
        runs = [np.zeros(0, dtype=np.uint64)]
        for text in texts:
            words = _WORD.findall(text.lower())
            if len(words) >= NUM_WORDS:
                runs.append(
                    _runs([self._ids.setdefault(word, len(self._ids) + 1) for word in words])
                )
        self._runs = np.unique(np.concatenate(runs))

    def __len__(self) -> int:
        """Return the number of different runs."""
        return len(self._runs)

    def find(self, text: str) -> str | None:
        """Return the first run of words that a text shares with the evaluation's, or None."""
        words = _WORD.findall(text.lower())
        if len(words) < NUM_WORDS:
            return None
        ids = [self._ids.get(word, 0) for word in words]
        runs = _runs(ids)
        # A run with a word that the evaluation does not have cannot be one of its runs.
        unknown = np.cumsum(np.array([0, *(id == 0 for id in ids)]))
        known = np.flatnonzero(unknown[NUM_WORDS:] == unknown[:-NUM_WORDS])
        places = np.searchsorted(self._runs, runs[known])
        places[places == len(self._runs)] = 0
        hits = known[self._runs[places] == runs[known]]
        return " ".join(words[hits[0] : hits[0] + NUM_WORDS]) if len(hits) else None


def _runs(ids: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Return a hash of every run: a polynomial of its words' mixed numbers, modulo 2^64."""
    words = np.array(ids, dtype=np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    count = len(words) - NUM_WORDS + 1
    total = np.zeros(count, dtype=np.uint64)
    for place in range(NUM_WORDS):
        total = total * np.uint64(_FACTOR) + words[place : place + count]
    return total


@functools.lru_cache(maxsize=2)
def evaluation_texts(patterns: tuple[str, ...]) -> EvaluationTexts:
    """Return the texts behind some paths; read once a process.

    Raises:
        ConfigError: a path has no readable files, or no text of 13 words.
    """
    found = EvaluationTexts(
        text for files in _find(patterns) for path in files.sizes for text in _texts(files, path)
    )
    if not len(found):
        raise ConfigError(f"{KEY}: no text of {NUM_WORDS} words or more in {', '.join(patterns)}")
    return found


def evaluation_digest(config: DataConfig) -> str:
    """Return a digest of the files to avoid."""
    digests = [content_digest(files) for files in _find(tuple(config.decontaminate))]
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()


def _find(patterns: tuple[str, ...]) -> list[Files]:
    return [find_files(pattern, f"{KEY}.{n}") for n, pattern in enumerate(patterns)]


def _texts(files: Files, path: str) -> Iterator[str]:
    """Yield the texts of a file: every string of a row of JSON, or the whole of a text file."""
    with files.open(path) as file:
        raw = file.read()
    if not path.endswith(".jsonl"):
        if path.endswith((".gz", ".zst", ".parquet")):
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
