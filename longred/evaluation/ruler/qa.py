"""Question answering: the documents that answer a question, among others that do not."""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longred.errors import ConfigError
from longred.evaluation.ruler.fitting import Steps
from longred.evaluation.ruler.questions import Question
from longred.evaluation.ruler.request import Request, Start

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
# Documents in a row that do not fit before no more are tried.
_NUM_MISSES = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is given with a question.

    Attributes:
        only_supporting: whether only documents that hold the answer are always given, and not the
            distractors that a file in HotpotQA's form has for each question.
        budget: tokens kept for the answer.
    """

    only_supporting: bool = False
    budget: int = 32


def prepare(request: Request) -> Start:
    """Return what begins a sample: question `index` of the set, or another where it is too long."""
    settings: Settings = request.settings
    questions = request.questions.questions
    distractors = _Distractors(request)

    def start(rng: random.Random, index: int) -> Steps:
        numbers = [index, *(rng.randrange(len(questions)) for _ in range(_NUM_QUESTIONS))]
        for number in numbers:
            question = questions[number % len(questions)]
            own = question.supporting if settings.only_supporting else question.documents
            size = yield _prompt(request, question, own)
            if size <= request.room:
                break
        else:
            raise ConfigError(
                f"evaluation.ruler.lengths: none of {len(numbers)} questions fits {request.room} "
                "tokens of this tokenizer with its own documents; ask for longer lengths"
            )
        seed, aim = rng.getrandbits(64), request.room - size
        given, num_tokens = [*own], size
        for attempt in range(_NUM_ATTEMPTS):
            tried = [*own, *distractors.choose(question, own, aim, seed)]
            random.Random(seed).shuffle(tried)  # noqa: S311
            size = yield _prompt(request, question, tried)
            if num_tokens < size <= request.room:
                given, num_tokens = tried, size
            unused = request.room - size
            if 0 <= unused <= request.length // 100:
                break
            # Sizes of single documents do not add up exactly; what was too much is kept well clear
            # of, since other documents are chosen then.
            aim += unused if unused > 0 else 2 * unused - attempt
        return {
            "input": _prompt(request, question, given).removesuffix(f" {PREFIX}"),
            "prefix": PREFIX,
            "outputs": list(question.answers),
            "num_tokens": num_tokens,
            "num_units": len(given),
            "depths": _depths(request, question, given),
        }

    return start


def _prompt(request: Request, question: Question, given: Sequence[int]) -> str:
    text = TASK.format(context=_context(request, given), question=question.text)
    return f"{text} {PREFIX}"


def _context(request: Request, given: Sequence[int]) -> str:
    documents = [request.questions.documents[number] for number in given]
    return "\n\n".join(
        DOCUMENT.format(number=number, document=document)
        for number, document in enumerate(documents, start=1)
    )


def _depths(request: Request, question: Question, given: Sequence[int]) -> list[float]:
    """Return the share of the context before each supporting document."""
    total = len(_context(request, given))
    places = (given.index(number) for number in question.supporting)
    return [round(len(_context(request, given[:place])) / total, 4) for place in places]


class _Distractors:
    """Chooses documents that together take a given number of tokens, or little less."""

    def __init__(self, request: Request) -> None:
        self.documents, self.count = request.questions.documents, request.count
        self.num_bos = request.count([""])[0]
        self.sizes: dict[int, int] = {}

    def choose(self, question: Question, own: Sequence[int], room: int, seed: int) -> list[int]:
        """Return documents of the same article first, then any; all again where that is not enough.

        The last ones are exchanged for others that fill the room better.
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
        """Yield each document once, and each again as long as none was too large."""
        related = [number for number in question.related if number not in own]
        rng.shuffle(related)
        yield from related
        left_out = {*own, *related}
        num_documents = len(self.documents)
        while num_documents > len(own) and not missed:
            for number in _permutation(rng, num_documents):
                if number not in left_out:
                    yield number
            left_out = {*own}

    def _exchange(self, chosen: list[int], missed: list[int], room: int) -> None:
        """Replace chosen documents by larger ones that did not fit, as long as that fills more."""
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
            text = DOCUMENT.format(number=10, document=self.documents[number]) + "\n\n"
            self.sizes[number] = self.count([text])[0] - self.num_bos
        return self.sizes[number]


def _permutation(rng: random.Random, count: int) -> Iterator[int]:
    """Yield the numbers below `count` in random order, without drawing more than are taken."""
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        drawn = rng.randint(0, last)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(last, last)
