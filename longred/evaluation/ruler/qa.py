"""Question answering: documents that answer a question, among distractors.

Distractors are documents of other questions, as in RULER. When no further one fits, passages of the
haystack follow; nothing is repeated before all of them are used too.
"""

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from longred.errors import ConfigError
from longred.evaluation.ruler.fitting import Draft, SampleSpec, Start, Steps, finished_sample
from longred.evaluation.ruler.haystacks import passages
from longred.evaluation.ruler.questions import Question

TASK = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nQuestion: {question}"
)
PREFIX = "Answer:"
DOCUMENT = "Document {number}:\n{document}"

_NUM_QUESTIONS = 64
_NUM_ATTEMPTS = 8
_NUM_SWAPS = 8
# The selection of documents ends after this many that do not fit.
_NUM_MISSES = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of `qa_1` and `qa_2`.

    Attributes:
        only_supporting: always give only the documents that hold the answer; leave out the
            distractors that a file in HotpotQA's form has for each question.
        budget: tokens reserved for the answer.
    """

    only_supporting: bool = False
    budget: int = 32


def prepare(spec: SampleSpec) -> Start:
    """Return the function that starts samples: question `index`, or another if that is too long.

    Samples also have a `group`, which identifies the question; `uses`, the most often that one
    document is given; and `num_passages`, the documents that are passages of the haystack.
    """
    settings: Settings = spec.settings
    questions = spec.questions.questions
    distractors = _Distractors(spec)

    def start(rng: random.Random, index: int) -> Steps:
        numbers = [index, *(rng.randrange(len(questions)) for _ in range(_NUM_QUESTIONS))]
        for number in numbers:
            question = questions[number % len(questions)]
            own = question.supporting if settings.only_supporting else question.documents
            size = yield prompt(question, own)
            if size <= spec.max_prompt_tokens:
                break
        else:
            raise ConfigError(
                f"evaluation.ruler.lengths: none of {len(numbers)} questions fits "
                f"{spec.max_prompt_tokens} tokens of this tokenizer with its own documents; "
                "use longer lengths"
            )
        seed, room = rng.getrandbits(64), spec.max_prompt_tokens - size
        given, num_tokens = [*own], size
        for attempt in range(_NUM_ATTEMPTS):
            candidate = [*own, *distractors.choose(question, own, room, seed)]
            random.Random(seed).shuffle(candidate)  # noqa: S311
            size = yield prompt(question, candidate)
            if num_tokens < size <= spec.max_prompt_tokens:
                given, num_tokens = candidate, size
            unused = spec.max_prompt_tokens - size
            if 0 <= unused <= spec.max_prompt_tokens // 100:
                break
            # Sizes of single documents do not add up exactly. After an overflow the room shrinks by
            # twice the excess, because other documents are chosen then.
            room += unused if unused > 0 else 2 * unused - attempt
        places = (given.index(number) for number in question.supporting)
        num_characters = len(context(given))
        depths = [round(len(context(given[:place])) / num_characters, 4) for place in places]
        draft = Draft(prompt(question, given), question.answers, depths)
        return {
            **finished_sample(draft, PREFIX, num_tokens, num_units=len(given)),
            "group": spec.questions.question_id(question),
            "uses": max(Counter(given).values()),
            "num_passages": sum(number >= len(spec.questions.documents) for number in given),
        }

    def prompt(question: Question, given: Sequence[int]) -> str:
        return f"{TASK.format(context=context(given), question=question.text)} {PREFIX}"

    def context(given: Sequence[int]) -> str:
        return "\n\n".join(
            DOCUMENT.format(number=number, document=distractors.text(index))
            for number, index in enumerate(given, start=1)
        )

    return start


class _Distractors:
    """Chooses documents that together take a given number of tokens, or slightly fewer.

    The numbers after those of the documents are passages of the haystack.
    """

    def __init__(self, spec: SampleSpec) -> None:
        self.documents, self.haystack, self.count = (
            spec.questions.documents,
            spec.haystack,
            spec.count,
        )
        self.num_bos = spec.count([""])[0]
        self.sizes: dict[int, int] = {}
        self.free_passages: dict[tuple[str, ...], list[int]] = {}

    @cached_property
    def passages(self) -> list[str]:
        """Passages of the haystack; cut when they are needed, since they seldom are."""
        known = set(self.documents)
        return [passage for passage in passages(self.haystack) if passage not in known]

    def text(self, number: int) -> str:
        """Return a document or passage."""
        num_documents = len(self.documents)
        if number < num_documents:
            return self.documents[number]
        return self.passages[number - num_documents]

    def choose(self, question: Question, own: Sequence[int], room: int, seed: int) -> list[int]:
        """Return related documents first, then any, passages, and all again until it is filled.

        Finally exchanges some of them for documents that fill the room better.
        """
        rng = random.Random(seed)  # noqa: S311
        chosen: list[int] = []
        missed: list[int] = []
        for number in self._stream(rng, question, own, missed):
            size = self._size(number)
            if size <= room:
                chosen.append(number)
                room -= size
            else:
                missed.append(number)
                if len(missed) >= _NUM_MISSES:
                    break
        self._exchange(chosen, missed, room)
        return chosen

    def _stream(
        self, rng: random.Random, question: Question, own: Sequence[int], missed: list[int]
    ) -> Iterator[int]:
        """Yield each document and passage once, then repeat as long as none was too large."""
        related = [number for number in question.related if number not in own]
        rng.shuffle(related)
        yield from related
        left_out, num_documents = {*own, *related}, len(self.documents)
        yield from (n for n in _permutation(rng, num_documents) if n not in left_out)
        free = self._without_answers(question)
        yield from (free[n] for n in _permutation(rng, len(free)))
        everything = [*(n for n in range(num_documents) if n not in own), *free]
        while everything and not missed:
            yield from (everything[n] for n in _permutation(rng, len(everything)))

    def _without_answers(self, question: Question) -> list[int]:
        """Return the numbers of the passages that contain no answer to a question as words."""
        answers = question.answers
        if answers not in self.free_passages:
            known = re.compile(
                rf"(?<!\w)(?:{'|'.join(map(re.escape, answers))})(?!\w)", re.IGNORECASE
            )
            self.free_passages[answers] = [
                number
                for number, passage in enumerate(self.passages, start=len(self.documents))
                if not known.search(passage)
            ]
        return self.free_passages[answers]

    def _exchange(self, chosen: list[int], missed: list[int], room: int) -> None:
        """Replace chosen documents by larger ones that did not fit, while that fills more."""
        for _ in range(_NUM_SWAPS):
            by_size = sorted(missed, key=self._size)
            best: tuple[int, int, int] | None = None
            for place, number in enumerate(chosen):
                limit = self._size(number) + room
                found = bisect_right(by_size, limit, key=self._size) - 1
                gain = self._size(by_size[found]) - self._size(number) if found >= 0 else 0
                if gain > 0 and (best is None or gain > best[0]):
                    best = gain, place, by_size[found]
            if best is None:
                return
            gain, place, number = best
            missed.remove(number)
            missed.append(chosen[place])
            chosen[place] = number
            room -= gain

    def _size(self, number: int) -> int:
        if number not in self.sizes:
            text = DOCUMENT.format(number=10, document=self.text(number)) + "\n\n"
            self.sizes[number] = self.count([text])[0] - self.num_bos
        return self.sizes[number]


def _permutation(rng: random.Random, count: int) -> Iterator[int]:
    """Yield the numbers below `count` in random order; draw only as many as are consumed."""
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        drawn = rng.randint(0, last)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(last, last)
