"""Short tasks: answers are right, choices are fair, and everything fits the window."""

from collections import Counter
from typing import Any

import pytest

from longred.errors import ConfigError
from longred.evaluation import short
from longred.evaluation.counting import count_tokens, encode
from longred.evaluation.short.choices import _bracket_pairs
from longred.evaluation.short.passages import Passages

WINDOW = 224
CHOICE_TASKS = ("cloze", "continuation", "brackets")


@pytest.fixture(scope="module")
def passages(tokenizer: Any, documents: Any) -> Passages:
    return Passages(documents, tokenizer, window=WINDOW)


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_the_text_and_fit(passages: Passages, documents: Any, task: str) -> None:
    texts = dict(documents)
    samples = short.make(task, passages, 30, 0)
    for sample in samples:
        right = sample["choices"][sample["answer"]]
        assert sample["input"] + right in texts[sample["source"]]
        context = encode(passages.tokenizer, sample["input"])
        sizes = set()
        for choice in sample["choices"]:
            whole = encode(passages.tokenizer, sample["input"] + choice)
            assert len(whole) <= WINDOW
            assert whole[: len(context)] == context
            sizes.add(len(whole) - len(context))
        assert len(sizes) == 1
        assert len(set(sample["choices"])) == len(sample["choices"])
        assert sample["input"] == sample["input"].rstrip()
    counts = Counter(sample["answer"] for sample in samples)
    if task == "brackets":
        assert sorted(counts.values()) == [10, 10, 10]
    else:
        assert len(counts) == 4
        assert all(len(sample["choices"]) == 4 for sample in samples)


def test_cloze_answers_occurred_before(passages: Passages) -> None:
    for sample in short.make("cloze", passages, 20, 0):
        assert all(choice.strip() in sample["input"] for choice in sample["choices"])


def test_continuations_come_from_other_documents(passages: Passages, documents: Any) -> None:
    texts = dict(documents)
    for sample in short.make("continuation", passages, 20, 0):
        others = [c for i, c in enumerate(sample["choices"]) if i != sample["answer"]]
        for other in others:
            assert any(other in text for path, text in texts.items() if path != sample["source"])


def test_brackets_match_a_stack() -> None:
    text = "f(a[1], {2: (3)}, ')' ) [x] ()"
    found = {(text[opened], text[closed]) for opened, closed in _bracket_pairs(text)}
    assert found == {("[", "]"), ("(", ")"), ("{", "}")}
    assert (1, text.index("')'") + 1) in list(_bracket_pairs(text))
    assert list(_bracket_pairs("(]) [ab]")) == [(4, 7)]


def test_key_recall_keeps_room_for_the_answer(passages: Passages) -> None:
    for sample in short.make("key_recall", passages, 20, 0):
        used = count_tokens(passages.tokenizer, sample["input"]) + sample["max_new_tokens"]
        assert used <= WINDOW
        assert sample["outputs"][0] in sample["input"]
        assert not sample["input"].endswith(sample["outputs"][0])


@pytest.mark.parametrize("task", list(short.TASKS))
def test_more_samples_keep_the_first(passages: Passages, task: str) -> None:
    few = short.make(task, passages, 4, 0)
    assert short.make(task, passages, 9, 0)[:4] == few
    assert short.make(task, passages, 4, 1) != few


def test_scarce_places_are_asked_again(tokenizer: Any) -> None:
    lines = "".join(f"value_{i} = call(alpha, beta)[index]\n" for i in range(40))
    documents = [("a", f"{lines}table = {{alpha: beta, gamma}}\n{lines}")]
    samples = short.make("brackets", Passages(documents, tokenizer, window=224), 12, 0)
    repeats = [sample["repeats"] for sample in samples if sample["answer"] == 2]
    assert repeats == [0, 1, 2, 3]


def test_too_little_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"5 samples of cloze, .* yield 0 in 224 tokens; hold"):
        short.make("cloze", Passages([("a", "a b c\n")], tokenizer, window=224), 5, 0)
