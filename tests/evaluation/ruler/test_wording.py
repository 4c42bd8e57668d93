"""Prompts have RULER's wording, parameters and layout, in both revisions."""

import re
import uuid
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from longred.evaluation import ruler
from longred.evaluation.counting import count_tokens
from longred.evaluation.ruler.haystacks import NOISE
from longred.evaluation.ruler.materials import library_text
from longred.evaluation.ruler.questions import own_questions

NEEDLE = r"One of the special magic (\w+) for (\S+) is: (\S+)\."


@pytest.fixture(scope="module")
def make(tokenizers: dict[str, Any]) -> Any:
    def make(task: str, n: int = 3, length: int = 4096, **settings: Any) -> list[dict[str, Any]]:
        return ruler.generate(
            task, length=length, num_samples=n, tokenizer=tokenizers["bpe"], seed=0, **settings
        )

    return make


def test_single_needle(make: Any) -> None:
    for sample in make("niah_single_1"):
        lines = sample["input"].split("\n")
        ((kind, key, value),) = re.findall(NEEDLE, sample["input"])
        assert (kind, [value]) == ("numbers", sample["outputs"])
        assert re.fullmatch(r"[1-9]\d{6}", value)
        assert lines[0] == (
            "A special magic number is hidden within the following text. Make sure to memorize it. "
            "I will quiz you about the number afterwards."
        )
        assert lines[-1] == (
            f"What is the special magic number for {key} mentioned in the provided text?"
        )
        assert sample["prefix"] == (
            f"The special magic number for {key} mentioned in the provided text is"
        )
        assert Counter(lines[1:-1]) == {NOISE: sample["num_units"], lines_of(sample)[0]: 1}


def lines_of(sample: dict[str, Any]) -> list[str]:
    """The lines that are needles."""
    return [line for line in sample["input"].split("\n") if re.fullmatch(NEEDLE, line)]


def test_text_haystack_begins_with_the_text_on_one_line(make: Any) -> None:
    flat = " ".join(" ".join(library_text()).split())
    for sample in make("niah_single_3"):
        context = sample["input"].split("\n")[1]
        ((kind, _, value),) = re.findall(NEEDLE, context)
        assert kind == "uuids"
        assert uuid.UUID(value).version == 4
        found = re.search(NEEDLE, context)
        assert found
        before, after = context[: found.start()].rstrip(), context[found.end() :].lstrip()
        assert flat.startswith(f"{before} {after}".strip())
        assert sample["num_units"] == len(f"{before} {after}".split())
        assert len(before) / len(f"{before} {after}") == pytest.approx(sample["depth"], abs=0.001)


def test_given_text_is_used_and_repeated(make: Any) -> None:
    (sample,) = make("niah_single_2", 1, haystack=["Just a few\nwords here. ", "And there."])
    context = sample["input"].split("\n")[1]
    assert context.count("Just a few words here. And there.") > 100


def test_four_keys_one_asked(make: Any) -> None:
    for sample in make("niah_multikey_1"):
        needles = re.findall(NEEDLE, sample["input"])
        assert len({key for _, key, _ in needles}) == 4
        asked = re.search(r"number for (\S+) mentioned", sample["prefix"])
        assert asked
        assert [value for _, key, value in needles if key == asked[1]] == sample["outputs"]


@pytest.mark.parametrize(
    ("task", "kind"), [("niah_multikey_2", "numbers"), ("niah_multikey_3", "uuids")]
)
def test_haystack_of_needles(make: Any, task: str, kind: str) -> None:
    for sample in make(task):
        needles = re.findall(NEEDLE, sample["input"])
        assert len(needles) == sample["num_units"] + 1
        assert {found for found, _, _ in needles} == {kind}
        assert len({key for _, key, _ in needles}) == len({v for *_, v in needles}) == len(needles)


def test_several_values_and_several_queries(make: Any) -> None:
    for task in ("niah_multivalue", "niah_multiquery"):
        for sample in make(task):
            needles = re.findall(NEEDLE, sample["input"])
            keys = list(dict.fromkeys(key for _, key, _ in needles))
            assert len(needles) == 4
            assert len(keys) == (1 if task == "niah_multivalue" else 4)
            assert sorted(value for *_, value in needles) == sorted(sample["outputs"])
            assert len(sample["depths"]) == 4
            assert "depth" not in sample
            assert sample["input"].startswith(
                "Some special magic numbers are hidden within the following text. "
                "Make sure to memorize it. I will quiz you about the numbers afterwards.\n"
            )
            query = re.search(
                r"\nWhat are all the special magic numbers for (.+) mentioned in the provided "
                r"text\?$",
                sample["input"],
            )
            assert query
            assert sample["prefix"] == (
                f"The special magic numbers for {query[1]} mentioned in the provided text are"
            )
            assert re.fullmatch(r"\S+" if len(keys) == 1 else r"\S+, \S+, \S+, and \S+", query[1])


def test_depths_cover_the_haystack(make: Any) -> None:
    for task in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        depths = [sample["depth"] for sample in make(task, 40)]
        assert min(depths) < 0.1
        assert max(depths) > 0.9
        assert 0.35 < sum(depths) / 40 < 0.65


def test_variable_tracking_today(make: Any, tokenizers: dict[str, Any]) -> None:
    samples = make("vt")
    examples = set()
    for sample in samples:
        example, question = sample["input"].split("\n\nMemorize")
        examples.add(example)
        value = re.search(r"VAR [A-Z]{5} = (\d{5})\n", question)
        assert value
        assert sample["prefix"] == (
            "Answer: According to the chain(s) of variable assignment in the text above, "
            f"5 variables are assigned the value {value[1]}, they are: "
        )
        assert question.endswith(
            f"\nQuestion: Find all variables that are assigned the value {value[1]} "
            "in the text above."
        )
        lines = question.split("\n")
        names = sample["outputs"]
        chain = [f"VAR {names[0]} = {value[1]}"]
        chain += [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
        assert [line for line in lines if line.startswith("VAR")] == chain
        assert lines.count(NOISE) == sample["num_units"]
        assert re.search(
            r"5 variables are assigned the value \d{5}, they are:  (\w{3} ?){5}$", example
        )
        assert 400 < count_tokens(tokenizers["bpe"], example) <= 501
    assert len(examples) == 3


def test_variable_tracking_of_the_paper(make: Any) -> None:
    samples = make("vt", revision="paper")
    examples = set()
    for sample in samples:
        example, question = sample["input"].split("\n\n\n\n")
        examples.add(example)
        assert "5 variables are assgined the value" in sample["prefix"]
        assert example.startswith(" Memorize and track the chain(s)")
        assert re.search(r"assigned the value \d{5} in the text Answer: According", example)
        assert f"{NOISE}\n VAR {sample['outputs'][1]} = VAR {sample['outputs'][0]}  " in question
    assert len(examples) == 1


def test_common_words(make: Any) -> None:
    for revision, gap in (("paper", ""), ("current", " ")):
        for sample in make("cwe", 2, length=8192, revision=revision):
            example, question = sample["input"].split("\nBelow is a numbered list")
            assert f"that appear most often in the list are:{gap}1. " in example
            counts = Counter(re.findall(r"\d+\. (\S+)", question.split("\nQuestion")[0]))
            assert set(Counter(counts.values())) == {30, 3}
            assert {word for word, n in counts.items() if n == 30} == set(sample["outputs"])
            assert len(counts) == sample["num_units"]
            shown = Counter(re.findall(r"\d+\. (\S+)", example.split("\nQuestion")[0]))
            assert Counter(shown.values()) == {10: 10, 3: 30}
            assert not set(shown) & set(counts)
            assert sample["prefix"] == (
                "Answer: The top 10 words that appear most often in the list are:"
            )
            assert question.endswith(
                "\nQuestion: What are the 10 most common words in the above list?"
            )


def test_common_words_go_on_when_the_list_is_used_up(tokenizers: dict[str, Any]) -> None:
    import random

    from longred.evaluation.ruler.words import all_words, list_words

    words = [*list_words(random.Random(0), 12_000)]
    assert len(set(words)) == 12_000
    assert set(all_words()) < set(words)


def test_frequent_words(make: Any) -> None:
    for sample in make("fwe"):
        text = re.search(r"coded words\. (.*)\nQuestion: Do not", sample["input"], re.S)
        assert text
        counts = Counter(text[1].split())
        ranked = counts.most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == sample["outputs"]
        assert ranked[3][1] > ranked[4][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
        for rank, (_, found) in enumerate(ranked, start=1):
            assert found == pytest.approx(counts["..."] / rank**2, abs=1)


@pytest.mark.parametrize(
    ("task", "questions"), [("qa_1", own_questions("squad")), ("qa_2", own_questions("hotpot"))]
)
def test_questions(make: Any, task: str, questions: Any) -> None:
    known = {question.text: question for question in questions.questions}
    order = [sample["input"].rsplit("Question: ", 1)[1] for sample in make(task, 5)]
    assert order == [question.text for question in questions.questions[:5]]
    for sample in make(task, 5):
        assert sample["prefix"] == "Answer:"
        assert (
            sample["input"].count("Only give me the answer and do not output any other words.") == 2
        )
        body, asked = (
            sample["input"]
            .split("\n\nThe following are given documents.\n\n")[1]
            .rsplit("\n\nAnswer the question based on the given documents.", 1)
        )
        documents = re.split(r"(?:^|\n\n)Document \d+:\n", body)[1:]
        assert len(documents) == sample["num_units"]
        question = known[asked.rsplit("Question: ", 1)[1]]
        assert sample["outputs"] == list(question.answers)
        for number in question.documents:
            assert documents.count(questions.documents[number]) == 1
        assert len(sample["depths"]) == len(question.supporting)
        gold = questions.documents[question.supporting[0]]
        assert body.index(gold) / len(body) == pytest.approx(sample["depths"][0], abs=0.01)


def test_compact_questions_come_without_distractors_of_their_own(make: Any) -> None:
    questions = own_questions("hotpot")
    for sample, question in zip(make("qa_2", 4, length=512), questions.questions, strict=False):
        for number in question.supporting:
            assert questions.documents[number] in sample["input"]


def test_compact_words_are_not_practised(make: Any) -> None:
    from longred.evaluation.ruler.words import ADJECTIVES, NOUNS
    from longred.evaluation.short.key_recall import KEY_ADJECTIVES, KEY_NOUNS

    assert not {*ADJECTIVES, *NOUNS} & {*KEY_ADJECTIVES, *KEY_NOUNS}
    for sample in make("niah_multiquery", 4, length=1024):
        for _, key, _ in re.findall(NEEDLE, sample["input"]):
            adjective, noun = key.split("-")
            assert adjective in ADJECTIVES
            assert noun in NOUNS
