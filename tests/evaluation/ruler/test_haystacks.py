"""Positions of needles and contents of haystacks."""

import json
import random
from pathlib import Path

import pytest

from longred.evaluation.ruler.haystacks import (
    NOISE,
    Haystack,
    flat_words,
    line_haystack,
    noise_haystack,
    passage_words,
    text_haystack,
)
from longred.evaluation.ruler.materials import read_haystack


def prose() -> Haystack:
    return text_haystack(["One. ", "Two. ", "Three."])


def test_needles_go_between_sentences_of_a_single_line() -> None:
    assert prose().insert(["N."], 3, [0.5])[0] == "One. Two. N. Three."
    assert prose().insert(["N."], 3, [0.0]) == ("N. One. Two. Three.", [0.0])
    assert prose().insert(["N."], 3, [0.99]) == ("One. Two. Three. N.", [1.0])
    assert prose().insert(["N."], 0, [0.5]) == ("N.", [0.0])


def test_several_needles_keep_their_order_at_one_place() -> None:
    text, depths = prose().insert(["A.", "B.", "C."], 3, [0.3, 0.35, 0.99])
    assert text == "One. A. B. Two. Three. C."
    assert depths == pytest.approx([5 / 16, 5 / 16, 1.0])


def test_needles_go_between_lines() -> None:
    text, depths = noise_haystack().insert(["N."], 3, [0.5])
    assert text.splitlines() == [NOISE, NOISE, "N.", NOISE]
    assert depths == pytest.approx([2 * (len(NOISE) + 1) / (3 * len(NOISE) + 2)])


def test_lines_are_drawn_once_and_in_order() -> None:
    haystack = line_haystack(f"line {number}" for number in range(100))
    assert haystack.text(3) == "line 0\nline 1\nline 2"
    assert haystack.text(1) == "line 0"
    assert haystack.text(5).endswith("line 4")


def test_short_text_is_repeated_and_white_space_collapsed() -> None:
    assert flat_words(["a\n\n b", "c"], 3) == ["a ", "b ", "c "]
    assert flat_words(["a\n\n b", "c"], 7) == ["a ", "b ", "c ", "a ", "b ", "c ", "a "]


def test_a_document_may_hold_line_ends_of_unicode(tmp_path: Path) -> None:
    texts = ["a\u2028b\x85c", "d"]
    path = tmp_path / "essays.jsonl"
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    assert read_haystack(path) == texts


def test_passages_keep_white_space_and_go_on_with_the_next_document() -> None:
    words = passage_words(["x = 1\n\n  y", "z"], random.Random(3), 12)
    assert len(words) == 12
    assert "".join(words) in "x = 1\n\n  y\nz\n" * 5
    starts = {passage_words(["x = 1\n\n  y", "z"], random.Random(n), 1)[0] for n in range(20)}
    assert starts == {"x ", "y\n", "z\n"}
