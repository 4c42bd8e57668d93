"""Lists that are longer than RULER's words: no word may be told by being a real one."""

import re
from collections import Counter
from typing import Any

import pytest

from longred.evaluation import ruler
from longred.evaluation.ruler import extraction, words

NUM_REAL = 150


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """RULER's list as one of 150 words, of which a prompt of 8,192 tokens needs more."""
    some = words.all_words()[:: len(words.all_words()) // NUM_REAL][:NUM_REAL]
    for module in (words, extraction):
        monkeypatch.setattr(module, "all_words", lambda: some)
    return set(some)


def make(tokenizer: Any, length: int, count: int) -> list[dict[str, Any]]:
    return ruler.generate("cwe", length=length, num_samples=count, tokenizer=tokenizer, seed=0)


def lists_of(sample: dict[str, Any]) -> list[Counter[str]]:
    """How often each word stands in the example and in the list."""
    parts = sample["input"].split("Below is a numbered list of words.")[1:]
    return [Counter(re.findall(r"\d+\. (\S+)", part.split("Question:")[0])) for part in parts]


def test_real_and_invented_words_are_mixed(few_words: set[str], tokenizers: dict[str, Any]) -> None:
    common: list[bool] = []
    others: list[bool] = []
    examples: list[bool] = []
    for sample in make(tokenizers["bpe"], 8192, 25):
        example, listed = lists_of(sample)
        assert sample["num_tokens"] + 120 > 0.97 * 8192
        assert len(listed) == sample["num_units"] > NUM_REAL
        assert not set(example) & set(listed)
        assert sorted(sample["outputs"]) == sorted(w for w, n in listed.items() if n == 30)
        common += [word in few_words for word, count in listed.items() if count == 30]
        others += [word in few_words for word, count in listed.items() if count == 3]
        examples += [word in few_words for word in example]
    shares = [sum(kind) / len(kind) for kind in (common, others, examples)]
    assert len(common) == 250
    assert 0.2 < shares[1] < 0.8
    assert shares[0] == pytest.approx(shares[1], abs=0.1)
    assert shares[2] == pytest.approx(shares[1], abs=0.1)


def test_lists_that_the_words_suffice_for_have_no_others(
    few_words: set[str], tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("there are words enough")

    monkeypatch.setattr(extraction, "mixed_words", refuse)
    for sample in make(tokenizers["bpe"], 4096, 3):
        assert {word for each in lists_of(sample) for word in each} <= few_words
