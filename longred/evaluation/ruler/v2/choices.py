"""Questions of MMLU as needles: found by number, copied or solved; the other niah tasks."""

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from longred.errors import ConfigError
from longred.evaluation.counting import Prompt
from longred.evaluation.ruler.fitting import SampleSpec, Start, Steps
from longred.evaluation.ruler.packing import Pieces, answer_budget, pack, stream
from longred.evaluation.ruler.questions import Question

ENTRY = "Question {number}: {text}"
COPY_ONE = (
    "Below are some questions. I will ask you to copy one of them. "
    "Please copy and paste the question you find.\n\n{entries}"
)
COPY_SOME = (
    "Below are some questions. I will ask you to copy some of them. "
    "Please copy and paste the questions you find.\n\n{entries}"
)
SOLVE = (
    "Below are some questions. I will ask you to solve one of them. Please solve the question you "
    "find and make sure to put the answer (and only answer) inside \\boxed\\{{\\}}.\n\n{entries}"
)
ORDINALS = ("1st", "2nd", "3rd", "4th")
_PREFIX = "Question {number}:"

# Further questions that are tried if one is too long, and draws of its companions for each.
_NUM_QUESTIONS = 64
_NUM_DRAWS = 4
# No question in a prompt is shorter, in tokens.
_LEAST_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of a task.

    Attributes:
        context: text around the questions.
        problem: what is asked, of a `number` and, for one of several, its `order`.
        prefix: start of the answer, on a line of its own.
        answer: the right answer after the prefix: sets the budget, and ends a worked example.
        outputs: the references: the question, all questions of the number, or the letter.
        until: strings that end a generated answer.
        num_same: questions that share each number.
        num_examples: worked examples, on questions of the context.
        budget: usual tokens of an answer. Samples have budgets of their own.
        exact_budget: whether the budget of a sample has no margin: only the last paragraph counts,
            so that a model that continues after the right answer must be cut there.
    """

    context: str
    problem: str
    prefix: str = _PREFIX
    answer: str = " {text}"
    outputs: Literal["text", "texts", "letter"] = "text"
    until: tuple[str, ...] = ("\n",)
    num_same: int = 1
    num_examples: int = 0
    budget: int = 128
    exact_budget: bool = False


SETTINGS: dict[str, Settings] = {
    "mk_niah_easy": Settings(
        context=COPY_ONE, problem="Please copy the Question {number} from the context."
    ),
    "mk_niah_medium": Settings(
        context=SOLVE,
        problem="Please copy the Question {number} from the context and then solve it with an "
        "answer from A, B, C, D.",
        answer=" {text}\nSolution: \\boxed{{{letter}}}",
        outputs="letter",
        until=("\n\n",),
        num_examples=5,
    ),
    "mk_niah_hard": Settings(
        context=SOLVE,
        problem="Please solve the Question {number} from the context with an answer from "
        "A, B, C, D.",
        prefix="Solution:",
        answer=" \\boxed{{{letter}}}",
        outputs="letter",
        num_examples=5,
        budget=32,
    ),
    "mv_niah_easy": Settings(
        context=COPY_SOME,
        problem="Please find and copy all the Question {number} from the context.",
        answer=" {texts}",
        outputs="texts",
        until=(),
        num_same=4,
        budget=512,
    ),
    "mv_niah_medium": Settings(
        context=COPY_ONE,
        problem="Please first copy all the Question {number} from the context and then copy the "
        "{order}Question {number} at the end.",
        answer=" {texts}\n\nQuestion {number}: {text}",
        until=(),
        num_same=4,
        budget=640,
        exact_budget=True,
    ),
    "mv_niah_hard": Settings(
        context=COPY_ONE,
        problem="Please copy the {order}Question {number} from the context.",
        num_same=4,
    ),
}
"""Name → RULER v2's parameters."""


def compact(settings: Settings) -> Settings:
    """Return the parameters for short windows, which have room for few examples."""
    return replace(settings, num_examples=min(settings.num_examples, 2))


@dataclass(frozen=True)
class Entry:
    """A question in a prompt."""

    number: str
    text: str
    letter: str

    def __str__(self) -> str:
        """Return the question as it stands in the context."""
        return ENTRY.format(number=self.number, text=self.text)


def prompt_text(
    settings: Settings, entries: Sequence[Entry], place: int, examples: Sequence[Entry] = ()
) -> tuple[str, str]:
    """Return a prompt without the start of its answer, and that start.

    Args:
        settings: the task's parameters.
        entries: the questions of the context.
        place: index of the question that is asked for.
        examples: entries that are solved before.
    """

    def asked(entry: Entry, order: str) -> tuple[str, str]:
        problem = settings.problem.format(number=entry.number, order=order)
        return f"{problem}\n", settings.prefix.format(number=entry.number)

    context = settings.context.format(entries="\n\n".join(map(str, entries)))
    shown = ("".join((*asked(entry, ""), right_answer(settings, [entry], 0))) for entry in examples)
    target = entries[place]
    same = [number for number, entry in enumerate(entries) if entry.number == target.number]
    order = f"{ORDINALS[same.index(place)]} (1 indexed) " if settings.num_same > 1 else ""
    problem, prefix = asked(target, order)
    return "\n\n".join([context, *shown, problem]), prefix


def right_answer(settings: Settings, entries: Sequence[Entry], place: int) -> str:
    """Return the right answer after the prefix, for the same arguments as `prompt_text`."""
    entry = entries[place]
    same = [each for each in entries if each.number == entry.number]
    return settings.answer.format(
        text=entry.text,
        letter=entry.letter,
        number=entry.number,
        texts="\n\n".join([same[0].text, *map(str, same[1:])]),
    )


@dataclass(frozen=True)
class _Draw:
    """What a prompt holds beside the questions that fill it.

    Attributes:
        spec: the task.
        asked: the question.
        same: documents with the number of the question.
        examples: documents that are shown as worked examples.
        seed: decides on numbers and places.
    """

    spec: SampleSpec
    asked: Question
    same: list[int]
    examples: list[int]
    seed: int

    def layout(self, filling: Sequence[int]) -> tuple[list[Entry], int, list[Entry]]:
        """Return all questions in order, the place of the asked one, and the examples."""
        rng, num_same = random.Random(self.seed), self.spec.settings.num_same  # noqa: S311
        others = [*self.examples, *filling]
        drawn = rng.sample(range(10**6, 10**7), 1 + -(-len(others) // num_same))
        number, *rest = map(str, drawn)
        rest = (rest * num_same)[: len(others)]
        rng.shuffle(rest)
        entries = [self._entry(n, other) for n, other in zip(rest, others, strict=True)]
        examples = entries[: len(self.examples)]
        entries += [self._entry(number, other) for other in self.same]
        rng.shuffle(entries)
        place = rng.randint(0, len(entries))
        entries.insert(place, Entry(number, self.asked.text, self.asked.answers[0]))
        return entries, place, examples

    def _entry(self, number: str, document: int) -> Entry:
        questions = self.spec.questions
        return Entry(number, questions.documents[document], questions.solutions[document])

    def prompt(self, filling: Sequence[int]) -> str:
        """Return the whole prompt."""
        return "".join(prompt_text(self.spec.settings, *self.layout(filling)))

    @cached_property
    def budget(self) -> int:
        """Tokens reserved for the answer."""
        entries, place, _ = self.layout([])
        return answer_budget(right_answer(self.spec.settings, entries, place), self.spec.count)

    def sample(self, filling: Sequence[int], num_tokens: int) -> dict[str, Any]:
        """Return the fields of the sample; see `generate`."""
        settings: Settings = self.spec.settings
        entries, place, examples = self.layout(filling)
        prompt, prefix = prompt_text(settings, entries, place, examples)
        target = entries[place]
        found = [place]
        if settings.outputs == "texts":
            found = [n for n, entry in enumerate(entries) if entry.number == target.number]
        sizes = [len(str(entry)) + 2 for entry in entries]
        depths = [round(sum(sizes[:n]) / sum(sizes), 4) for n in found]
        budget = self.budget
        if settings.exact_budget:
            answer = right_answer(settings, entries, place)
            num_bos, size = self.spec.count(["", answer])
            budget = min(budget, size - num_bos)
        is_letter = settings.outputs == "letter"
        outputs = [entries[n].letter if is_letter else entries[n].text for n in found]
        return {
            "input": prompt,
            "prefix": prefix,
            "outputs": outputs,
            "until": [*settings.until],
            "max_new_tokens": budget,
            "num_tokens": num_tokens,
            "num_units": len(entries),
            "depths": depths,
            "group": self.spec.questions.question_id(self.asked),
            "uses": max(Counter([*self.same, *self.examples, *filling]).values(), default=1),
            "num_passages": 0,
        } | ({"depth": depths[0]} if len(depths) == 1 else {})


def prepare(spec: SampleSpec) -> Start:
    """Return the function that starts samples.

    Questions are asked in a random order that is always the same: files are sorted by subject.
    """
    questions = spec.questions
    order = [*range(len(questions.questions))]
    random.Random("order").shuffle(order)  # noqa: S311
    places = {text: place for place, text in enumerate(questions.documents)}
    entry = ENTRY + "\n\n"
    pieces = Pieces(
        lambda piece: entry.format(number=1234567, text=questions.documents[piece]), spec.count
    )

    def start(rng: random.Random, index: int) -> Steps:
        numbers = [order[index % len(order)], *(rng.choice(order) for _ in range(_NUM_QUESTIONS))]
        for number in numbers:
            asked = questions.questions[number]
            others = _all_but(len(places), places.get(asked.text))
            found = yield from _first_fitting(spec, asked, others, rng)
            if found is not None:
                break
        else:
            raise ConfigError(
                f"evaluation.ruler.lengths: none of {len(numbers)} questions fits {spec.length} "
                "tokens of this tokenizer with its answer; use longer lengths"
            )
        draw, size = found
        shown = {*draw.same, *draw.examples}
        fresh = [document for document in others if document not in shown]
        offered = stream(rng, fresh or others, spec.length // _LEAST_TOKENS)
        room = spec.length - draw.budget
        filling, num_tokens = yield from pack(draw.prompt, pieces, offered, room, size)
        return draw.sample(filling, num_tokens)

    return start


def _all_but(count: int, left_out: int | None) -> Sequence[int]:
    if left_out is None:
        return range(count)
    return [*range(left_out), *range(left_out + 1, count)]


def _first_fitting(
    spec: SampleSpec, asked: Question, others: Sequence[int], rng: random.Random
) -> Generator[Prompt, int, tuple[_Draw, int] | None]:
    """Return a question with companions that fit, and the tokens of their prompt."""
    settings: Settings = spec.settings
    num_same = settings.num_same - 1
    for _ in range(_NUM_DRAWS):
        drawn = stream(rng, others, num_same + settings.num_examples)
        draw = _Draw(spec, asked, drawn[:num_same], drawn[num_same:], rng.getrandbits(64))
        size = yield draw.prompt([])
        if size + draw.budget <= spec.length:
            return draw, size
    return None
