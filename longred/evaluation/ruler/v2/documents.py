"""Documents of HotpotQA, each with a number: found by text or question, or read for an answer.

When the documents are used up, passages of the haystack follow, as in `ruler.qa`.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from longred.errors import ConfigError
from longred.evaluation.ruler.fitting import SampleSpec, Start, Steps
from longred.evaluation.ruler.haystacks import passages
from longred.evaluation.ruler.packing import Pieces, answer_budget, pack, stream
from longred.evaluation.ruler.questions import Question

DOCUMENT = "Document {number}:\n{text}"
FIND_TEXT = (
    "Below are some documents. I will give you a text at the end. Please find the document index "
    "of the text. Only give me the index without any document contents.\n\n{documents}"
)
FIND_RELEVANT = (
    "Below are some documents. I will give you a question at the end. Please find the index of "
    "the most relevant document that can help answer the question. Only give me the index without "
    "any document contents.\n\n{documents}"
)
ANSWER = (
    "Below are some documents. I will ask you to answer a question based on the documents. "
    "Please answer the question.\n\n{documents}"
)

# Further questions that are tried if one is too long.
_NUM_QUESTIONS = 64
# No document in a prompt is shorter, in tokens.
_LEAST_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of a task.

    Attributes:
        context: text around the documents.
        problem: what is asked, with the `question` or the `text` of its first document.
        prefix: start of the answer, on a line of its own.
        outputs: the references: the number of the first supporting document, the numbers of all,
            or the answers.
        copies: whether the supporting documents are copied before the answer.
        until: strings that end a generated answer.
        only_supporting: whether the distractors that the file has for each question are left out.
        budget: tokens reserved for the answer, in addition to copied documents.
    """

    context: str
    problem: str
    prefix: str
    outputs: Literal["number", "numbers", "answers"]
    copies: bool = False
    until: tuple[str, ...] = ("\n",)
    only_supporting: bool = False
    budget: int = 32


SETTINGS: dict[str, Settings] = {
    "qa_basic": Settings(
        context=FIND_TEXT,
        problem="Text: {text}",
        prefix="Most relevant document index:",
        outputs="number",
    ),
    "qa_easy": Settings(
        context=FIND_RELEVANT,
        problem="Question: {question}",
        prefix="Index of the most relevant document that can help answer the question:",
        outputs="numbers",
    ),
    "qa_medium": Settings(
        context=ANSWER,
        problem="Please first find and copy paste the documents relevant to the following question "
        "and then answer it based on the documents you find.\n\nQuestion: {question}",
        prefix="Answer:",
        outputs="answers",
        copies=True,
        until=(),
    ),
    "qa_hard": Settings(
        context=ANSWER,
        problem="Please answer the following question based on the documents.\n\n"
        "Question: {question}",
        prefix="Answer:",
        outputs="answers",
    ),
}
"""Name → RULER v2's parameters."""


def compact(settings: Settings) -> Settings:
    """Return the parameters for short windows."""
    return replace(settings, only_supporting=True)


def prompt_text(
    settings: Settings, documents: Sequence[tuple[str, str]], question: str, text: str
) -> tuple[str, str]:
    """Return a prompt without the start of its answer, and that start.

    Args:
        settings: the task's parameters.
        documents: number and text of each document.
        question: the question.
        text: the text of its first supporting document.
    """
    listed = "\n\n".join(DOCUMENT.format(number=n, text=body) for n, body in documents)
    problem = settings.problem.format(question=question, text=text)
    return f"{settings.context.format(documents=listed)}\n\n{problem}\n", settings.prefix


class _Texts:
    """The documents, and after them the passages of the haystack, by number."""

    def __init__(self, spec: SampleSpec) -> None:
        self.documents, self._haystack = spec.questions.documents, spec.haystack

    def __getitem__(self, number: int) -> str:
        num_documents = len(self.documents)
        return (
            self.documents[number]
            if number < num_documents
            else self._passages[number - num_documents]
        )

    @cached_property
    def _passages(self) -> list[str]:
        known = set(self.documents)
        return [passage for passage in passages(self._haystack) if passage not in known]

    def passages_without(self, answers: Sequence[str]) -> list[int]:
        """Return the numbers of the passages that contain no answer as words."""
        found = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, answers))})(?!\w)", re.IGNORECASE)
        numbered = enumerate(self._passages, start=len(self.documents))
        return [number for number, passage in numbered if not found.search(passage)]

    def offered(self, rng: random.Random, draw: "_Draw", count: int) -> list[int]:
        """Return numbers to fill a prompt with: documents, then passages, then all of them again.

        Each comes once before any repeats, in random order.
        """
        own = {*draw.own}
        others = [number for number in range(len(self.documents)) if number not in own]
        drawn = rng.sample(others, min(count, len(others)))
        if len(drawn) < count:
            free = self.passages_without(draw.asked.answers)
            drawn += rng.sample(free, min(count - len(drawn), len(free)))
            others += free
        return drawn + stream(rng, others, count - len(drawn))


@dataclass(frozen=True)
class _Draw:
    """What a prompt holds beside the documents that fill it.

    Attributes:
        spec: the task.
        texts: all documents and passages.
        asked: the question.
        own: the documents that are given with it.
        supporting: those of them that hold the answer, in the file's order.
        seed: decides on numbers and places.
    """

    spec: SampleSpec
    texts: _Texts
    asked: Question
    own: list[int]
    supporting: list[int]
    seed: int

    def layout(self, filling: Sequence[int]) -> tuple[list[tuple[str, str]], list[int]]:
        """Return number and text of all documents in order, and the places of `supporting`."""
        rng = random.Random(self.seed)  # noqa: S311
        given = [*self.own, *filling]
        numbers = rng.sample(range(10**6, 10**7), len(given))
        order = [*range(len(given))]
        rng.shuffle(order)
        documents = [(str(numbers[n]), self.texts[given[n]]) for n in order]
        return documents, [order.index(self.own.index(document)) for document in self.supporting]

    def prompt(self, filling: Sequence[int]) -> str:
        """Return the whole prompt."""
        return "".join(self._texts(self.layout(filling)[0]))

    def _texts(self, documents: Sequence[tuple[str, str]]) -> tuple[str, str]:
        text = self.texts[self.supporting[0]]
        return prompt_text(self.spec.settings, documents, self.asked.text, text)

    @cached_property
    def budget(self) -> int:
        """Tokens reserved for the answer."""
        settings: Settings = self.spec.settings
        if not settings.copies:
            return settings.budget
        documents, places = self.layout([])
        copied = "\n\n".join(
            DOCUMENT.format(number=documents[place][0], text=documents[place][1])
            for place in places
        )
        return settings.budget + answer_budget(copied, self.spec.count)

    def sample(self, filling: Sequence[int], num_tokens: int) -> dict[str, Any]:
        """Return the fields of the sample; see `generate`."""
        settings: Settings = self.spec.settings
        documents, places = self.layout(filling)
        prompt, prefix = self._texts(documents)
        outputs = [*self.asked.answers]
        if settings.outputs != "answers":
            places = places[: 1 if settings.outputs == "number" else None]
            outputs = [documents[place][0] for place in places]
        sizes = [len(number) + len(text) for number, text in documents]
        depths = [round(sum(sizes[:place]) / sum(sizes), 4) for place in places]
        return {
            "input": prompt,
            "prefix": prefix,
            "outputs": outputs,
            "until": [*settings.until],
            "max_new_tokens": self.budget,
            "num_tokens": num_tokens,
            "num_units": len(documents),
            "depths": depths,
            "group": self.spec.questions.question_id(self.asked),
            "uses": max(Counter([*self.own, *filling]).values(), default=1),
            "num_passages": sum(n >= len(self.texts.documents) for n in filling),
        } | ({"depth": depths[0]} if len(depths) == 1 else {})


def prepare(spec: SampleSpec) -> Start:
    """Return the function that starts samples: question `index`, or another if that is too long."""
    questions = spec.questions.questions
    texts, frame = _Texts(spec), DOCUMENT + "\n\n"
    pieces = Pieces(lambda piece: frame.format(number=1234567, text=texts[piece]), spec.count)

    def start(rng: random.Random, index: int) -> Steps:
        tried = [index, *(rng.randrange(len(questions)) for _ in range(_NUM_QUESTIONS))]
        for number in (attempt % len(questions) for attempt in tried):
            draw = _draw(spec, texts, questions[number], rng.getrandbits(64))
            size = yield draw.prompt([])
            if size + draw.budget <= spec.length:
                break
        else:
            raise ConfigError(
                f"evaluation.ruler.lengths: none of {len(tried)} questions fits {spec.length} "
                "tokens of this tokenizer with its own documents and answer; use longer lengths"
            )
        offered = texts.offered(rng, draw, spec.length // _LEAST_TOKENS)
        room = spec.length - draw.budget
        filling, num_tokens = yield from pack(draw.prompt, pieces, offered, room, size)
        return draw.sample(filling, num_tokens)

    return start


def _draw(spec: SampleSpec, texts: _Texts, asked: Question, seed: int) -> _Draw:
    supporting = [document for document in asked.documents if document in asked.supporting]
    own = supporting if spec.settings.only_supporting else [*asked.documents]
    return _Draw(spec, texts, asked, own, supporting, seed)
