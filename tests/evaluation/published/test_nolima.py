"""NoLiMa: needles, questions and depths on a file of the same form with needles of our own."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.errors import ConfigError, PreflightError
from longred.evaluation.prompts import plain_prompt
from longred.evaluation.published.nolima import NUM_DEPTHS

Read = Callable[..., list[dict[str, Any]]]

NAMED = {
    "id": "0901",
    "reasoning_type": "world_knowledge",
    "system_prompt": "",
    "needle": "Last year {CHAR} moved to {1}.",
    "questions": {"onehop": "Who lives in {2}?", "twohop": "Who lives in {3}?"},
    "character_set": ["Ada", "Ben", "Cleo"],
    "tests": {"T1": {"input_args": ["Lyon", "France", "Europe"]}},
}
ANSWERED = {
    "id": "0902",
    "needle": "The {1} barks.",
    "questions": {"direct": "Which animal makes a noise?"},
    "tests": {
        "T1": {"input_args": ["dog"], "gold_answers": ["dog", "Dog"]},
        "T2": {"input_args": ["seal"], "gold_answers": ["seal"]},
    },
}
BOOK = "\n".join(f"Line {n} of the book, with {'some ' * (n % 4)}words." for n in range(300)) + "\n"


def paths(folder: Path, rows: list[dict[str, Any]], book: str = BOOK) -> dict[str, Path]:
    (folder / "needle_set.json").write_text(json.dumps(rows))
    (folder / "rand_book_1.txt").write_text(book, encoding="utf-8")
    (folder / "rand_book_2.txt").write_text(book[::-1] + "\n", encoding="utf-8")
    return {
        "test": folder / "needle_set.json",
        "haystack_1": folder / "rand_book_1.txt",
        "haystack_2": folder / "rand_book_2.txt",
    }


def test_every_question_is_asked_at_every_depth_of_every_book(read: Read, tmp_path: Path) -> None:
    samples = read("nolima", paths(tmp_path, [NAMED, ANSWERED]), length=200)
    assert len({sample["id"] for sample in samples}) == len(samples) == 2 * 4 * NUM_DEPTHS
    groups = Counter(sample["group"] for sample in samples)
    assert set(groups) == {
        "0901-T1-onehop", "0901-T1-twohop", "0902-T1-direct", "0902-T2-direct"
    }  # fmt: skip
    assert set(groups.values()) == {2 * NUM_DEPTHS}
    assert len({sample["group"] for sample in samples[:12]}) > 1
    names = Counter()
    for sample in samples:
        if sample["group"].startswith("0901"):
            (name,) = sample["outputs"]
            names[name] += 1
            assert sample["input"].count(f"Last year {name} moved to Lyon.\n") == 1
            place = "France" if sample["group"].endswith("onehop") else "Europe"
            assert sample["input"].endswith(f"Question: Who lives in {place}?")
        elif "T1" in sample["group"]:
            assert sample["outputs"] == ["dog", "Dog"]
            assert sample["input"].count("The dog barks.\n") == 1
        assert plain_prompt(sample) == sample["input"] + "\nAnswer:"
    assert set(names) == {"Ada", "Ben", "Cleo"}


@pytest.mark.parametrize("length", [64, 200])
def test_needles_stand_at_their_depth(
    read: Read, tokenizer: Any, tmp_path: Path, length: int
) -> None:
    files = paths(tmp_path, [ANSWERED])
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    samples = read("nolima", files, length=length, template="{haystack}|||{question}")
    for sample in samples:
        book = files["haystack_" + sample["id"].split("rand_book_")[1][0]].read_text()
        haystack = sample["input"].split("|||")[0]
        needle = "The dog barks.\n" if "T1" in sample["group"] else "The seal barks.\n"
        before, _, after = haystack.partition(needle)
        assert before + after in book
        # The needle begins a line of the book.
        assert book[: book.index(before + after)] + before == "" or (
            book[: book.index(before + after)] + before
        ).endswith("\n")
        # Counted in the tokens of the whole book, as tokens may join across the cuts.
        start = len(encode(book[: book.index(before + after)]))
        middle = len(encode(book[: book.index(before + after) + len(before)]))
        end = len(encode(book[: book.index(before + after) + len(before + after)]))
        assert middle - start == pytest.approx(length * sample["depth"], abs=2)
        assert end - start == pytest.approx(length, abs=2)
    assert {round(sample["depth"], 6) for sample in samples} == {
        round(step / (NUM_DEPTHS - 1), 6) for step in range(NUM_DEPTHS)
    }


def test_wordings_and_kinds_can_be_chosen(read: Read, tmp_path: Path) -> None:
    own = {**NAMED, "task_template": "Book: {haystack}\nAsked: {question}"}
    samples = read("nolima", paths(tmp_path, [own]), length=64, kind="twohop")
    assert {sample["group"] for sample in samples} == {"0901-T1-twohop"}
    assert all(sample["input"].startswith("Book: ") for sample in samples)
    with pytest.raises(ConfigError, match=r"no question is of the kind threehop"):
        read("nolima", paths(tmp_path, [own]), length=64, kind="threehop")
    with pytest.raises(ConfigError, match=r"must contain \{haystack\} and \{question\}"):
        read("nolima", paths(tmp_path, [own]), length=64, template="{haystack}")


def test_bad_files_are_refused(read: Read, tmp_path: Path) -> None:
    for changes, message in (
        ({"needle": 5}, r"needle_set\.json: row 1: needle: "),
        ({"questions": {}}, r"row 1: questions: "),
        (
            {"character_set": []},
            r"row 1: 0901-T1-onehop: names a character and has no char",
        ),
        # They would be left out, and the scores too high.
        ({"distractors": {"onehop": "A {1} fell."}}, r"row 1: 0901: has distractors, which are no"),
    ):
        with pytest.raises(ConfigError, match=message):
            read("nolima", paths(tmp_path, [{**NAMED, **changes}]), length=64)
    bare = {**ANSWERED, "tests": {"T1": {"input_args": ["dog"]}}}
    with pytest.raises(ConfigError, match=r"0902-T1-direct: has no gold_answers"):
        read("nolima", paths(tmp_path, [bare]), length=64)
    with pytest.raises(PreflightError, match=r"rand_book_\d has \d+ tokens, too few .* of 50000"):
        read("nolima", paths(tmp_path, [NAMED]), length=50_000)
