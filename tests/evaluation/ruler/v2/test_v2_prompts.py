"""Prompts of RULER v2: full, never too long, answerable, independent, with its wording."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.utils import maybe_delimit
from transformers import PreTrainedTokenizerFast
from v2_oracles import documents, entries, letters, mmlu_rows, oracle, rows
from v2_oracles import line as on_one_line

from longred.config.evaluation import MMLU_TASKS, RULER_V2_TASKS
from longred.demo import model_path
from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.counting import count_tokens
from longred.evaluation.metrics.ruler import METRICS
from longred.evaluation.ruler.materials import library_text
from longred.evaluation.ruler.questions import own_questions
from longred.evaluation.ruler.rows import Source
from longred.evaluation.ruler.v2.mmlu import read_mmlu

NEEDLE = r"One of the special magic numbers for (\S+) is: (\d{10})\."


def prompt(sample: dict[str, Any]) -> str:
    """Return a prompt as it is given to a model."""
    text: str = maybe_delimit(sample["input"], sample["prefix"])
    return text


CELLS = [
    *(("bpe", 4096, task) for task in RULER_V2_TASKS),
    *(("bpe", 1536, task) for task in RULER_V2_TASKS),
    *(("unigram", 4096, f"v2_{task}") for task in ("mv_niah_basic", "mk_niah_hard", "qa_easy")),
    *(("byte_level", 4096, f"v2_{task}") for task in ("mk_niah_basic", "mv_niah_hard", "qa_hard")),
    pytest.param("bpe", 65536, "v2_mv_niah_medium", marks=pytest.mark.medium),
]


@pytest.mark.parametrize(("kind", "length", "task"), CELLS)
def test_prompts_are_full_never_too_long_and_answerable(
    make: Any, tokenizers: dict[str, Any], kind: str, length: int, task: str
) -> None:
    for sample in make(task, length=length, kind=kind):
        text, budget = prompt(sample), sample["max_new_tokens"]
        assert sample["parameters"] == ("full" if length >= 4096 else "compact")
        assert count_tokens(tokenizers[kind], text) == sample["num_tokens"]
        assert sample["num_tokens"] + budget <= length
        # In short windows a whole question or document may be missing.
        assert sample["num_tokens"] + budget >= (0.97 if length >= 4096 else 0.85) * length
        answer = oracle(task)(text)
        assert ruler.score(task, [answer], [sample["outputs"]]) == 100.0
        assert ruler.score(task, [""], [sample["outputs"]]) == 0.0
        tokens = tokenizers[kind](answer, add_special_tokens=False)["input_ids"]
        assert len(tokens) <= budget
        # Only the last paragraph counts: a model that does not end must be cut.
        assert len(tokens) == budget or task != "v2_mv_niah_medium"
        # A line end within the answer would cut it.
        assert not any(stop in answer.lstrip("\n") for stop in sample["until"])


@pytest.mark.parametrize("task", ["v2_mk_niah_medium", "v2_mv_niah_basic", "v2_qa_medium"])
def test_samples_depend_on_nothing_else(make: Any, task: str) -> None:
    alone = make(task, 2)
    assert make(task, 3)[:2] == alone
    assert make(task, 1, seed=1)[0]["input"] != alone[0]["input"]


@pytest.mark.parametrize("task", RULER_V2_TASKS)
def test_too_short_lengths_are_refused(make: Any, task: str) -> None:
    with pytest.raises(ConfigError, match=rf"lengths: 100 is too short for {task}, .* at least"):
        make(task, length=100)


@pytest.mark.parametrize(("task", "head"), [
    (
        "v2_mk_niah_easy",
        "Below are some questions. I will ask you to copy one of them. Please copy and paste the "
        "question you find.\n\nQuestion ",
    ),
    (
        "v2_mv_niah_easy",
        "Below are some questions. I will ask you to copy some of them. Please copy and paste the "
        "questions you find.\n\nQuestion ",
    ),
    (
        "v2_mk_niah_hard",
        "Below are some questions. I will ask you to solve one of them. Please solve the question "
        "you find and make sure to put the answer (and only answer) inside \\boxed\\{\\}.\n\n"
        "Question ",
    ),
    (
        "v2_qa_basic",
        "Below are some documents. I will give you a text at the end. Please find the document "
        "index of the text. Only give me the index without any document contents.\n\nDocument ",
    ),
    (
        "v2_qa_easy",
        "Below are some documents. I will give you a question at the end. Please find the index "
        "of the most relevant document that can help answer the question. Only give me the index "
        "without any document contents.\n\nDocument ",
    ),
    (
        "v2_qa_hard",
        "Below are some documents. I will ask you to answer a question based on the documents. "
        "Please answer the question.\n\nDocument ",
    ),
])  # fmt: skip
def test_prompts_begin_with_the_task(make: Any, task: str, head: str) -> None:
    assert all(sample["input"].startswith(head) for sample in make(task))


TAILS = {
    "v2_mk_niah_easy": r"Please copy the Question (N) from the context\.\nQuestion \1:",
    "v2_mk_niah_medium": r"Please copy the Question (N) from the context and then solve it with an "
    r"answer from A, B, C, D\.\nQuestion \1:",
    "v2_mk_niah_hard": r"Please solve the Question (N) from the context with an answer from "
    r"A, B, C, D\.\nSolution:",
    "v2_mv_niah_easy": r"Please find and copy all the Question (N) from the context\.\n"
    r"Question \1:",
    "v2_mv_niah_medium": r"Please first copy all the Question (N) from the context and then copy "
    r"the (?:1st|2nd|3rd|4th) \(1 indexed\) Question \1 at the end\.\nQuestion \1:",
    "v2_mv_niah_hard": r"Please copy the (?:1st|2nd|3rd|4th) \(1 indexed\) Question (N) from the "
    r"context\.\nQuestion \1:",
    "v2_qa_basic": r"Text: .+\n.+\nMost relevant document index:",
    "v2_qa_easy": r"Question: .+\nIndex of the most relevant document that can help answer the "
    r"question:",
    "v2_qa_medium": r"Please first find and copy paste the documents relevant to the following "
    r"question and then answer it based on the documents you find\.\n\nQuestion: .+\nAnswer:",
    "v2_qa_hard": r"Please answer the following question based on the documents\.\n\n"
    r"Question: .+\nAnswer:",
}


@pytest.mark.parametrize("task", list(TAILS))
def test_prompts_end_with_the_problem_and_the_start_of_the_answer(make: Any, task: str) -> None:
    for sample in make(task):
        assert re.search(f"\n\n{TAILS[task]}$".replace("N", r"\d{7}"), prompt(sample))
        assert prompt(sample) == sample["input"] + sample["prefix"]


def test_numbers_of_ten_digits(make: Any) -> None:
    for task, count in (("v2_mk_niah_basic", 1), ("v2_mv_niah_basic", 4)):
        for sample in make(task):
            needles = re.findall(NEEDLE, sample["input"])
            assert len(needles) == sample["num_units"] + count
            assert len({value for _, value in needles}) == len(needles)
            # Every key has as many values; one key may have fewer, where they do not divide.
            numbers = Counter(Counter(key for key, _ in needles).values())
            assert sum(n for size, n in numbers.items() if size == count) >= len(numbers)
            assert max(numbers) == count
            assert len(sample["outputs"]) == len(sample["depths"]) == count
            assert "Make sure to memorize " + ("it." if count == 1 else "them.") in sample["input"]
            assert sample["max_new_tokens"] == 128


@pytest.mark.parametrize("task", MMLU_TASKS)
def test_questions_of_mmlu(make: Any, task: str) -> None:
    test = {on_one_line(row) for row in mmlu_rows()["test"]}
    others = {on_one_line(row) for row in mmlu_rows()["auxiliary_train"]}
    num_same = 4 if "mv" in task else 1
    for sample in make(task):
        found = entries(prompt(sample))
        assert len(found) == sample["num_units"]
        numbers = Counter(number for number, _ in found)
        asked = re.findall(r"Question (\d{7})", prompt(sample))[-1]
        assert numbers[asked] == num_same
        # All numbers but those of the last few questions occur as often.
        assert set(numbers.values()) <= set(range(1, num_same + 1))
        assert Counter(numbers.values())[num_same] >= len(numbers) - num_same
        assert sum(text in test for _, text in found) == 1
        assert sum(text in others for _, text in found) == len(found) - 1
        together = "\n\n".join(f"Question {number}: {text}" for number, text in found)
        assert together in sample["input"]
        depths = [
            together.index(f"Question {number}: {text}") / len(together)
            for number, text in found
            if number == asked and (task == "v2_mv_niah_easy" or text in test)
        ]
        assert sample["depths"] == pytest.approx(depths, abs=0.01)


@pytest.mark.parametrize("task", ["v2_mk_niah_medium", "v2_mk_niah_hard"])
def test_worked_examples_are_of_the_context(make: Any, task: str) -> None:
    verb = "copy" if task.endswith("medium") else "solve"
    for sample in make(task):
        context = dict(entries(prompt(sample)))
        shown = sample["input"].split(f"\n\nPlease {verb} the Question ")[1:]
        assert len(shown) == 6
        for example in shown[:5]:
            number = example[:7]
            lines = example.split("\n")[1:]
            copied = [f"Question {number}: {context[number]}"] if verb == "copy" else []
            assert lines == [*copied, f"Solution: \\boxed{{{letters()[context[number]]}}}"]
    compact = make(task, length=1536)[0]["input"]
    assert compact.count(f"\n\nPlease {verb} the Question ") == 3


@pytest.mark.parametrize("task", [name for name in RULER_V2_TASKS if "qa" in name])
def test_documents_of_hotpot(make: Any, task: str) -> None:
    known, haystack = own_questions("hotpot"), " ".join(" ".join(library_text()).split())
    for sample, question in zip(make(task), known.questions, strict=False):
        given = documents(prompt(sample))
        assert len(given) == sample["num_units"] == len({number for number, _ in given})
        texts = [text for _, text in given]
        passages = [text for text in texts if text not in known.documents]
        assert len(passages) == sample["num_passages"]
        # The packaged documents do not fill 4,096 tokens; nothing repeats before passages do.
        assert passages
        assert sample["uses"] == 1
        for number in question.documents:
            assert texts.count(known.documents[number]) == 1
        places = [texts.index(known.documents[n]) for n in sorted(question.supporting)]
        numbers = [given[place][0] for place in places]
        expected = {"v2_qa_basic": numbers[:1], "v2_qa_easy": numbers}
        assert sample["outputs"] == expected.get(task, list(question.answers))
        assert sample["group"] == known.question_id(question)
        for passage in passages:
            assert " ".join(passage.split()) in haystack
            assert not re.search(rf"\b{re.escape(question.answers[0])}\b", passage, re.IGNORECASE)
        assert ("depth" in sample) == (task == "v2_qa_basic")


@pytest.mark.parametrize("task", sorted(MMLU_TASKS))
def test_no_question_stands_twice_in_a_prompt_that_some_fill(make: Any, task: str) -> None:
    for sample in make(task, 8, length=1536):
        texts = [text for _, text in entries(prompt(sample))]
        assert sample["uses"] == 1
        assert len(set(texts)) == len(texts) == sample["num_units"]


def test_questions_are_asked_once_before_any_repeats(make: Any) -> None:
    samples = make("v2_mk_niah_hard", 45, length=1536)
    groups = [sample["group"] for sample in samples]
    assert len(set(groups[:40])) == 40
    assert groups[40:] == groups[:5]
    assert groups[:40] != sorted(groups[:40])
    depths = [sample["depth"] for sample in samples]
    assert min(depths) < 0.15
    assert max(depths) > 0.7


def test_questions_that_are_too_long_are_passed_over(make: Any, tmp_path: Path) -> None:
    def longer(num_words: int) -> list[dict[str, Any]]:
        before = "long " * num_words
        return [{**row, "question": before + row["question"]} for row in rows(15, 5, "Which")]

    found, middling = longer(5000), longer(900)
    path = tmp_path / "long.jsonl"

    def given(listed: list[dict[str, Any]]) -> Any:
        path.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
        return read_mmlu(Source(key="evaluation.ruler.mmlu", path=str(path)))

    short = rows(20, 6, "What")
    samples = make("v2_mk_niah_easy", 3, qa=given([*found, *short]))
    assert {s["outputs"][0] for s in samples} <= {on_one_line(row) for row in short}
    with pytest.raises(ConfigError, match=r"4096 is too short for v2_mk_niah_easy"):
        make("v2_mk_niah_easy", qa=given(found))
    # The prompts fit, but their answers take more than the usual tokens.
    with pytest.raises(ConfigError, match=r"none of 65 questions fits 1536 tokens"):
        make("v2_mk_niah_easy", length=1536, qa=given(middling))


DIGESTS = {
    "v2_mk_niah_basic": "dd39e92b6c743c04",
    "v2_mk_niah_easy": "69a3a7d77f3aaa02",
    "v2_mk_niah_medium": "64b0ed5b2d9c8d7b",
    "v2_mk_niah_hard": "bd4ce096b2a1bfc0",
    "v2_mv_niah_basic": "c2fa406e87cde59f",
    "v2_mv_niah_easy": "2f14d315861888f8",
    "v2_mv_niah_medium": "bbad04dde649ae51",
    "v2_mv_niah_hard": "7f976cb2746a90ee",
    "v2_qa_basic": "209728209a611f0f",
    "v2_qa_easy": "f51edcf006111ca0",
    "v2_qa_medium": "3f84ab53ac4fd71f",
    "v2_qa_hard": "70fb831a69519a36",
}


@pytest.mark.parametrize("task", RULER_V2_TASKS)
def test_samples_of_a_version(make: Any, tokenizers: dict[str, Any], task: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path())
    given = {"seed": 7, "tokenizer": tokenizer, "haystack": own_questions("squad").documents}
    samples = [make(task, 1, length, **given)[0] for length in (2048, 4096)]
    found = hashlib.sha256(json.dumps(samples, sort_keys=True).encode()).hexdigest()[:16]
    assert found == DIGESTS[task]


def test_metrics_are_the_published_ones() -> None:
    metrics = {name: ruler.TASKS[name].metric for name in RULER_V2_TASKS}
    assert {metrics[name] for name in RULER_V2_TASKS if "qa" in name} == {"any_answer_match"}
    assert metrics["v2_mk_niah_medium"] == metrics["v2_mk_niah_hard"] == "letter_match"
    assert metrics["v2_mv_niah_medium"] == "last_answer_match"
    assert sum(metric == "answer_match" for metric in metrics.values()) == 5
    assert set(metrics.values()) <= set(METRICS)
