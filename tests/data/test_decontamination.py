"""N-grams of 13 words, compared with a slow exhaustive search."""

import random
import re
from pathlib import Path

import pytest

from longred.data.decontamination import EvaluationTexts, evaluation_texts
from longred.errors import ConfigError


def runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + 13]) for i in range(len(words) - 12)]


@pytest.mark.parametrize("seed", range(10))
def test_runs_are_found_as_a_search_through_all_finds_them(seed: int) -> None:
    rng = random.Random(seed)
    vocabulary = ["a", "b", "c"]

    def text(length: int) -> str:
        return " ".join(rng.choice(vocabulary) for _ in range(length))

    asked = [text(rng.choice((3, 13, 40, 400))) for _ in range(60)]
    known = {run for question in asked for run in runs(question)}
    found = EvaluationTexts(iter(asked))
    assert len(found) == len(known)
    hits = 0
    for _ in range(200):
        candidate = text(rng.choice((5, 12, 13, 30))) + rng.choice(("", " x", ", C. b"))
        first = next((run for run in runs(candidate) if run in known), None)
        assert found.find(candidate) == (None if first is None else " ".join(first))
        hits += first is not None
    assert 0 < hits < 200


def test_words_of_another_order_or_unknown_words_are_no_hit() -> None:
    words = [f"w{n}" for n in range(13)]
    found = EvaluationTexts(iter([" ".join(words)]))
    assert found.find("before " + " ".join(words) + " behind")
    assert found.find(" ".join(reversed(words))) is None
    assert found.find(" ".join([*words[:6], "new", *words[7:]])) is None


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only a few words")
    with pytest.raises(ConfigError, match=r"data\.decontaminate: no text of 13 words"):
        evaluation_texts((str(path),))
    path = tmp_path / "bad.jsonl"
    path.write_text('{"input": "fine"}\n{\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2 is not JSON"):
        evaluation_texts((str(path),))
    with pytest.raises(ConfigError, match=r"data\.decontaminate\.0: .* does not exist"):
        evaluation_texts((str(tmp_path / "nowhere"),))
