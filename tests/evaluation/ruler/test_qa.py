"""Question answering: what fills a prompt, in which order, and how repeated questions are known."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longred.config.evaluation import RulerConfig
from longred.evaluation import ruler
from longred.evaluation.ruler.freeze import counted, freeze_task, identity
from longred.evaluation.ruler.haystacks import PASSAGE_WORDS, passages
from longred.evaluation.ruler.materials import Materials, library_text, read_materials
from longred.evaluation.ruler.questions import Question, Questions, own_questions

TASKS = {"qa_1": own_questions("squad"), "qa_2": own_questions("hotpot")}


def documents_of(sample: dict[str, Any]) -> list[str]:
    """The documents of a prompt, read from its text."""
    body = sample["input"].split("\n\nThe following are given documents.\n\n")[1]
    body = body.rsplit("\n\nAnswer the question based on the given documents.", 1)[0]
    return re.split(r"(?:^|\n\n)Document \d+:\n", body)[1:]


def has_answer(text: str, answers: tuple[str, ...]) -> bool:
    """Whether the words of an answer stand in a text, by comparing runs of words."""
    words = re.findall(r"\w+", text.lower())
    wanted = [re.findall(r"\w+", answer.lower()) for answer in answers]
    return any(words[at : at + len(w)] == w for w in wanted for at in range(len(words)))


@pytest.mark.parametrize("task", TASKS)
def test_passages_of_the_text_come_before_repetition(task: str, tokenizers: dict[str, Any]) -> None:
    questions = TASKS[task]
    (sample,) = ruler.generate(
        task, length=32_768, num_samples=1, tokenizer=tokenizers["bpe"], seed=0
    )
    given = documents_of(sample)
    assert len(given) == sample["num_units"] > 2 * len(questions.documents)
    assert max(Counter(given).values()) == sample["uses"] == 1
    taken = [text for text in given if text not in questions.documents]
    assert len(taken) == sample["num_passages"]
    # A few documents give way to passages that fill the prompt better.
    assert len(given) - len(taken) > 0.6 * len(questions.documents)
    assert set(taken) <= set(passages(library_text()))
    answers = questions.questions[0].answers
    assert not any(has_answer(text, answers) for text in taken)
    assert any(has_answer(text, answers) for text in given)


def test_passages_that_contain_an_answer_are_left_out(tokenizers: dict[str, Any]) -> None:
    text = ["The Moon is near.\n\n" + "Stars are far. " * 20 + "\n\nmoonlight " * 70]
    questions = Questions(
        name="one",
        documents=("The moon turns around us.", "Nothing of the kind."),
        questions=(
            Question(text="What?", answers=("the moon", "moon"), documents=(0,), supporting=(0,)),
        ),
    )
    (sample,) = ruler.generate(
        "qa_1",
        length=4096,
        num_samples=1,
        tokenizer=tokenizers["bpe"],
        seed=0,
        haystack=text,
        qa=questions,
    )
    given = documents_of(sample)
    assert not any("Moon is near" in each for each in given)
    assert any("moonlight" in each for each in given)
    assert given.count(questions.documents[0]) == 1


def test_text_is_repeated_only_when_all_of_it_is_used(tokenizers: dict[str, Any]) -> None:
    haystack = ["\n\n".join(f"{number} is a number. " * 12 for number in range(100, 120))]
    questions = TASKS["qa_1"]
    everything = {*questions.documents, *passages(haystack)}
    assert len(passages(haystack)) == 20
    samples = ruler.generate(
        "qa_1",
        length=16_384,
        num_samples=3,
        tokenizer=tokenizers["bpe"],
        seed=0,
        haystack=haystack,
    )
    for sample in samples:
        uses = Counter(documents_of(sample))
        assert set(uses) == everything
        assert sample["uses"] == max(uses.values()) > 1
        own = next(text for text in questions.documents if uses[text] == 1)
        assert min(count for text, count in uses.items() if text != own) >= sample["uses"] - 2


def test_groups_are_questions(tokenizers: dict[str, Any]) -> None:
    questions = replace(TASKS["qa_1"], questions=TASKS["qa_1"].questions[:3])

    def make(length: int, **settings: Any) -> list[dict[str, Any]]:
        return ruler.generate(
            "qa_1",
            length=length,
            num_samples=7,
            tokenizer=tokenizers["bpe"],
            qa=questions,
            **settings,
        )

    groups = [sample["group"] for sample in make(512, seed=0)]
    asked = [sample["input"].rsplit("Question: ", 1)[1] for sample in make(512, seed=0)]
    assert groups[:3] == groups[3:6]
    assert len(set(groups)) == len(set(asked)) == 3
    assert groups == [sample["group"] for sample in make(1024, seed=5)]
    first = questions.questions[0]
    for change in ({"text": "Another?"}, {"answers": ("x",)}, {"documents": (1,)}):
        assert questions.question_id(replace(first, **change)) != groups[0]  # type: ignore[arg-type]
    moved = replace(questions, documents=("new", *questions.documents))
    same = replace(first, documents=tuple(number + 1 for number in first.documents))
    assert moved.question_id(same) == groups[0], "the content counts, not its place in the file"


def config(**changes: Any) -> RulerConfig:
    return RulerConfig.model_validate({"lengths": [512], "num_samples": 2, **changes})


def test_packaged_questions_are_marked(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    plain, counting = config(), config(count_builtin=True)

    def entry(made: RulerConfig, task: str) -> dict[str, Any]:
        materials = replace(read_materials(made), documents=())
        tokenizer = tokenizers["bpe"]
        _, found = freeze_task(made, task, 512, tokenizer=tokenizer, seed=0, materials=materials)
        return counted(made, found)

    for task in TASKS:
        assert entry(plain, task)["builtin"] is True
        assert "counts" not in entry(plain, task)
        assert entry(counting, task)["counts"] is True
        same = [
            identity(made, task, 512, seed=0, materials=read_materials(made))
            for made in (plain, counting)
        ]
        assert same[0] == same[1]
    assert not {"builtin", "counts"} & set(entry(counting, "niah_single_1"))
    rows = [
        {
            "title": "Rain",
            "context": "Rain falls from clouds.",
            "question": "From what?",
            "answers": {"text": ["clouds"]},
        }
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) for row in rows))
    own = config(squad=str(path), count_builtin=True)
    assert not {"builtin", "counts"} & set(entry(own, "qa_1"))
    assert entry(own, "qa_2")["counts"] is True
    assert plain.digest_values() != counting.digest_values()
    assert "count_builtin" not in plain.digest_values()


def test_another_text_makes_other_questions() -> None:
    def of(task: str, text: str) -> dict[str, Any]:
        materials = Materials(
            haystack="text",
            documents=[text],
            questions={"squad": TASKS["qa_1"], "hotpot": TASKS["qa_2"]},
        )
        return identity(config(), task, 512, seed=0, materials=materials)

    assert of("qa_1", "a") != of("qa_1", "b")
    assert of("vt", "a") == of("vt", "b")


def test_index_tells_which_text_is_used(tokenizers: dict[str, Any]) -> None:
    made = config(lengths=[8192])
    materials = read_materials(made)
    samples, entry = freeze_task(
        made, "qa_2", 8192, tokenizer=tokenizers["bpe"], seed=0, materials=materials
    )
    assert entry["haystack"] == "Python's documentation"
    assert entry["haystack_uses"] == 1
    assert entry["num_passages"] == max(sample["num_passages"] for sample in samples) > 0
    alone = replace(materials, documents=())
    samples, entry = freeze_task(
        made, "qa_2", 8192, tokenizer=tokenizers["bpe"], seed=0, materials=alone
    )
    assert entry["num_passages"] == 0
    assert "haystack" not in entry
    uses = [max(Counter(documents_of(sample)).values()) for sample in samples]
    assert entry["haystack_uses"] == max(uses) > 1


def test_passages_are_the_text_in_pieces() -> None:
    for document in library_text():
        found = passages([document])
        assert " ".join(found).split() == document.split() or len(found) < 2
        assert all(0 < len(passage.split()) <= PASSAGE_WORDS for passage in found)
        assert not any("\n\n" in passage for passage in found)
    everything = passages(library_text())
    assert len(everything) == len(set(everything))
    sizes = [len(passage.split()) for passage in everything]
    assert sum(sizes) / len(sizes) > PASSAGE_WORDS / 2


def test_passages_end_where_the_text_does() -> None:
    short, long = "Two words. ", "One sentence of six words here. "
    assert passages([f"{short}\n\n{short}\n \n{short}", short]) == [
        "Two words.\n" * 2 + "Two words.",
        "Two words.",
    ]
    cut = passages(["".join(f"Sentence {number} {long}" for number in range(20))])
    assert [len(passage.split()) for passage in cut] == [80, 80]
    assert all(passage.startswith("Sentence") and passage.endswith("here.") for passage in cut)
    assert passages(["word " * 170]) == [" ".join(["word"] * 80), " ".join(["word"] * 10)]
    assert passages([" \n\n ", ""]) == []
