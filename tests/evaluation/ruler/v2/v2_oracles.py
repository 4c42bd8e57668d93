"""Rows in MMLU's form, and perfect answers to the prompts of RULER v2, found by their text alone.

The rows consist of sentences of the packaged documents, cut at random places.
"""

import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from longred.evaluation.ruler.questions import own_questions

ORDINALS = {"1st": 0, "2nd": 1, "3rd": 2, "4th": 3}


def rows(count: int, seed: int, name: str) -> list[dict[str, Any]]:
    """Return rows in the form of cais/mmlu, of 10 to 100 words; `name` makes them distinct."""
    rng = random.Random(seed)
    words = " ".join(own_questions("hotpot").documents).split()

    def passage(num_words: int) -> str:
        start = rng.randrange(len(words) - num_words)
        return " ".join(words[start : start + num_words])

    return [
        {
            "question": f"{passage(rng.randint(4, 80))}\n  {name} {number}?",
            "subject": "",
            "choices": [passage(rng.randint(1, 5)) for _ in range(4)],
            "answer": rng.randrange(4),
        }
        for number in range(count)
    ]


@cache
def mmlu_rows() -> dict[str, list[dict[str, Any]]]:
    """Return rows by split."""
    return {"test": rows(40, 1, "Which"), "auxiliary_train": rows(400, 2, "What")}


def line(row: dict[str, Any]) -> str:
    """Return a question on one line, as it stands in a prompt."""
    a, b, c, d = row["choices"]
    return " ".join(f"{row['question']} A. {a} B. {b} C. {c} D. {d}".split())


@cache
def letters() -> dict[str, str]:
    """Return the right letter of each question."""
    return {line(row): "ABCD"[row["answer"]] for split in mmlu_rows().values() for row in split}


def entries(prompt: str) -> list[tuple[str, str]]:
    """Return number and text of the questions of the context."""
    start = prompt.index("\n\nQuestion ")
    return re.findall(r"\n\nQuestion (\d{7}): (.+)", prompt[start : prompt.index("\n\nPlease ")])


def choice(prompt: str) -> str:
    """Return the answer to a prompt with questions of MMLU."""
    problem = prompt[prompt.rindex("\n\nPlease ") :]
    (number,) = set(re.findall(r"Question (\d{7})", problem))
    texts = [text for found, text in entries(prompt) if found == number]
    order = re.search(r"the (\d\w\w) \(1 indexed\) Question", problem)
    text = texts[ORDINALS[order[1]] if order else 0]
    together = f"\n\nQuestion {number}: ".join(texts)
    if "copy all the Question" in problem:
        return f" {together}" + (f"\n\nQuestion {number}: {text}" if order else "")
    if "solve" not in problem:
        return f" {text}"
    solution = f" \\boxed{{{letters()[text]}}}"
    return solution if problem.endswith("Solution:") else f" {text}\nSolution:{solution}"


def documents(prompt: str) -> list[tuple[str, str]]:
    """Return number and text of the documents of the context."""
    body = re.split(r"\n\n(?:Text: |Question: |Please )", prompt)[0]
    parts = re.split(r"\n\nDocument (\d{7}):\n", body)[1:]
    return [*zip(parts[::2], parts[1::2], strict=True)]


def numbered(prompt: str) -> str:
    """Return the answer to a prompt with documents of HotpotQA."""
    known = own_questions("hotpot")
    given = documents(prompt)
    if "Most relevant document index:" in prompt:
        text = prompt[prompt.rindex("\n\nText: ") + 8 : prompt.rindex("\nMost relevant")]
        return " " + next(number for number, body in given if body == text)
    asked = re.findall(r"Question: (.+)\n", prompt)[-1]
    question = next(each for each in known.questions if each.text == asked)
    supporting = {known.documents[number] for number in question.supporting}
    found = [(number, body) for number, body in given if body in supporting]
    assert len(found) == len(supporting)
    if "Index of the most relevant" in prompt:
        return f" {found[0][0]}"
    copied = "".join(f"\nDocument {number}:\n{body}\n\n" for number, body in found)
    return f"{copied if 'copy paste' in prompt else ' '}{question.answers[0]}"


def number(prompt: str) -> str:
    """Return the numbers of the key that is asked for."""
    key = re.findall(r"special magic numbers? for (\S+) mentioned", prompt)[-1]
    return " " + ", ".join(re.findall(rf"numbers for {key} is: (\d{{10}})\.", prompt))


def oracle(task: str) -> Callable[[str], str]:
    """Return the function that answers a task's prompts."""
    if task.endswith("niah_basic"):
        return number
    return numbered if task.startswith("v2_qa") else choice
