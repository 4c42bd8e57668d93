"""Solve prompts from their text alone, like a perfect model, without the sample's references."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from longred.config.evaluation import RULER_V2_TASKS
from longred.evaluation import ruler
from longred.evaluation.ruler.questions import Questions, own_questions

V1_TASKS = [task for task in ruler.TASKS if task not in RULER_V2_TASKS]


def whole(sample: dict[str, Any]) -> str:
    """Return the prompt that a model sees: the input, a space unless a line ends, the prefix."""
    gap = "" if sample["input"][-1].isspace() else " "
    return f"{sample['input']}{gap}{sample['prefix']}"


def needles(prompt: str) -> str:
    """Return the values of all requested keys."""
    context, question = prompt.rsplit("\nWhat ", 1)
    asked = re.search(r"for (.+?) mentioned in the provided text\?", question)
    assert asked
    keys = [key for key in re.split(r",? and |, ", asked[1]) if key]
    values = defaultdict(list)
    for key, value in re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", context):
        values[key].append(value)
    return ", ".join(value for key in keys for value in values[key])


def variables(prompt: str) -> str:
    """Return the names of all variables with the value, found by following assignments."""
    body = prompt[prompt.rindex("Memorize and track") :]
    wanted = re.search(r"assigned the value (\d+) in the text above", body)
    assert wanted
    pattern = r"VAR ([A-Z]{5}) = (?:VAR ([A-Z]{5})|(\d+))"
    sources = {name: source or value for name, source, value in re.findall(pattern, body)}

    def value_of(name: str) -> str:
        return value_of(sources[name]) if name in sources else name

    return " ".join(name for name in sources if value_of(name) == wanted[1])


def common_words(prompt: str) -> str:
    """The most common words of the last numbered list."""
    body = prompt[prompt.rindex("Below is a numbered list") :]
    count = re.search(r"What are the (\d+) most common words", body)
    assert count
    listed = re.findall(r"\d+\. (\S+)", body[: count.start()])
    most = Counter(listed).most_common(int(count[1]))
    return " ".join(f"{number}. {word}" for number, (word, _) in enumerate(most, start=1))


def frequent_words(prompt: str) -> str:
    """The three most frequent words that are not dots."""
    start = prompt.index("coded words. ") + len("coded words. ")
    words = prompt[start : prompt.index("\nQuestion:")].split()
    counts = Counter(word for word in words if word != "...")
    return " ".join(word for word, _ in counts.most_common(3))


def pair(prompt: str) -> str:
    """Return the value of the requested key, read with a JSON parser."""
    body, key = re.findall(r"JSON data:\n(\{.*\})\n\nKey: \"(.+?)\"", prompt, re.DOTALL)[0]
    value: str = json.loads(body)[key]
    return value


def answers(questions: Questions) -> Callable[[str], str]:
    """Return an oracle: a question's first answer, or "" if its documents are not in the prompt."""
    known = {question.text: question for question in questions.questions}

    def answer(prompt: str) -> str:
        question = known[prompt.rsplit("Question: ", 1)[1].removesuffix(" Answer:")]
        given = all(questions.documents[number] in prompt for number in question.supporting)
        return question.answers[0] if given else ""

    return answer


ORACLES: dict[str, Callable[[str], str]] = {
    "kv_retrieval": pair,
    "niah": needles,
    "vt": variables,
    "cwe": common_words,
    "fwe": frequent_words,
    "qa_1": answers(own_questions("squad")),
    "qa_2": answers(own_questions("hotpot")),
}


def solve(task: str, prompts: Sequence[str]) -> list[str]:
    """Return the answers of a perfect model."""
    oracle = ORACLES["niah" if task.startswith("niah") else task]
    return [oracle(prompt) for prompt in prompts]
