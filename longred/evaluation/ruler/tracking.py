"""Variable tracking: a chain of assignments hidden in noise, behind one worked example."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from longred.evaluation.ruler.fitting import Steps, fit, linear, per_unit
from longred.evaluation.ruler.haystacks import NOISE
from longred.evaluation.ruler.request import Request, Revision, Start
from longred.evaluation.ruler.words import coded_word, distinct

TASK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {value} in the text above."
)
PREFIX = (
    "Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are {assigned} the value {value}, they are: "
)
ASSIGNED: dict[Revision, str] = {"paper": "assgined", "current": "assigned"}
"""The older wording has a typing error, which every published score of its time includes."""

# In the older form the example's template lost its line ends and its last word.
_PAPER_EXAMPLE_TASK = " ".join(TASK.split()[:-1])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long the chain is.

    Attributes:
        num_hops: assignments after the first.
        example_tokens: the worked example takes at most that many, where its noise can be cut; none
            for 0.
        budget: tokens kept for the answer.
    """

    num_hops: int = 4
    example_tokens: int = 500
    budget: int = 30


@dataclass(frozen=True)
class _Chain:
    """Variables that all have the value of the first."""

    names: list[str]
    value: str

    def lines(self) -> list[str]:
        pairs = zip(self.names[1:], self.names, strict=False)
        return [
            f"VAR {self.names[0]} = {self.value}",
            *(f"VAR {name} = VAR {source} " for name, source in pairs),
        ]


def prepare(request: Request) -> Start:
    """Return what begins a sample."""
    settings: Settings = request.settings
    revision = request.revision
    assigned, num_variables = ASSIGNED[revision], settings.num_hops + 1
    unit_tokens = per_unit(lambda num_units: _join([NOISE] * num_units, revision), request.count)
    num_example_units = _example_units(request, unit_tokens)

    def start(rng: random.Random, index: int) -> Steps:
        del index
        chain = _draw(rng, 5, num_variables)
        places = rng.getrandbits(64)
        # The older form has one example for all samples.
        examples = random.Random("example") if revision == "paper" else rng  # noqa: S311
        example = ""
        if num_example_units:
            example = _example(examples, num_example_units, settings, revision)
        prefix = PREFIX.format(count=num_variables, assigned=assigned, value=chain.value)

        @cache
        def question(num_units: int) -> tuple[str, list[float]]:
            context, depths = _hide(chain, num_units, places, revision)
            return example + TASK.format(context=context, value=chain.value), depths

        num_units, num_tokens = yield from fit(
            lambda num_units: f"{question(num_units)[0]} {prefix}",
            request.room,
            smallest=num_variables,
            largest=request.length,
            tokens=linear(unit_tokens),
            slack=request.slack,
        )
        text, depths = question(num_units)
        return {
            "input": text,
            "prefix": prefix,
            "outputs": chain.names,
            "num_tokens": num_tokens,
            "num_units": num_units,
            "depths": depths,
        }

    return start


def _draw(rng: random.Random, name_length: int, count: int) -> _Chain:
    names = distinct(lambda: coded_word(rng, name_length, string.ascii_uppercase))
    return _Chain([next(names) for _ in range(count)], str(rng.randint(10_000, 99_998)))


def _hide(
    chain: _Chain, num_units: int, places: int, revision: Revision
) -> tuple[str, list[float]]:
    """Return noise with the assignments in it, in order, and the share of it before each."""
    lines = chain.lines()
    chosen = sorted(random.Random(places).sample(range(num_units), len(lines)))  # noqa: S311
    sentences = [NOISE] * num_units
    for shift, (place, line) in enumerate(zip(chosen, lines, strict=True)):
        sentences.insert(place + shift, line)
    context = _join(sentences, revision)
    return context, [round(context.index(line) / len(context), 4) for line in lines]


def _join(sentences: Sequence[str], revision: Revision) -> str:
    if revision == "current":
        return "\n".join(sentences)
    ended = [f"{sentence}\n" if sentence == NOISE else sentence for sentence in sentences]
    return " ".join(ended)


def _example(rng: random.Random, num_units: int, settings: Settings, revision: Revision) -> str:
    chain = _draw(rng, 3, settings.num_hops + 1)
    context, _ = _hide(chain, num_units, rng.getrandbits(64), revision)
    template = _PAPER_EXAMPLE_TASK if revision == "paper" else TASK
    question = template.format(context=context, value=chain.value)
    prefix = PREFIX.format(count=len(chain.names), assigned=ASSIGNED[revision], value=chain.value)
    text = f"{question} {prefix} {' '.join(chain.names)}"
    return f" {text}\n\n\n\n" if revision == "paper" else f"{text}\n\n"


def _example_units(request: Request, unit_tokens: float) -> int:
    """Return how many lines of noise the example has: the most that fit, but room for its chain.

    None where there is no example.
    """
    settings: Settings = request.settings
    if not settings.example_tokens:
        return 0
    smallest = settings.num_hops + 1

    def size(count: int) -> int:
        # Of the same chain every time, so that sizes differ by noise alone.
        rng = random.Random("size")  # noqa: S311
        return request.count([_example(rng, count, settings, request.revision)])[0]

    count = smallest + max(0, int((settings.example_tokens - size(smallest)) / unit_tokens))
    while count > smallest and size(count) > settings.example_tokens:
        count -= 1
    return count
