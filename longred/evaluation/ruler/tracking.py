"""Variable tracking (`vt`): a chain of assignments hidden in noise, after one worked example."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from longred.evaluation.ruler.fitting import (
    Draft,
    Revision,
    SampleSpec,
    Start,
    Steps,
    fill,
    linear,
    per_unit,
)
from longred.evaluation.ruler.haystacks import NOISE
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
"""The typing error of the older wording is part of every score published with it."""

# In the older wording, the template of the example has no line ends and lacks its last word.
_PAPER_EXAMPLE_TASK = " ".join(TASK.split()[:-1])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of `vt`.

    Attributes:
        num_hops: assignments after the first.
        example_tokens: size limit of the worked example, whose noise is cut to fit; 0 for none.
        budget: tokens reserved for the answer.
    """

    num_hops: int = 4
    example_tokens: int = 500
    budget: int = 30


@dataclass(frozen=True)
class _Chain:
    """Variables that all have the value of the first."""

    names: list[str]
    value: str

    @classmethod
    def draw(cls, rng: random.Random, name_length: int, num_names: int) -> "_Chain":
        names = distinct(lambda: coded_word(rng, name_length, string.ascii_uppercase))
        return cls([next(names) for _ in range(num_names)], str(rng.randint(10_000, 99_998)))

    def lines(self) -> list[str]:
        pairs = zip(self.names[1:], self.names, strict=False)
        return [
            f"VAR {self.names[0]} = {self.value}",
            *(f"VAR {name} = VAR {source} " for name, source in pairs),
        ]


def prepare(spec: SampleSpec) -> Start:
    """Return the function that starts samples."""
    settings: Settings = spec.settings
    revision = spec.revision
    assigned, num_variables = ASSIGNED[revision], settings.num_hops + 1
    unit_tokens = per_unit(lambda num_units: _join([NOISE] * num_units, revision), spec.count)
    num_example_units = _num_example_units(spec, unit_tokens)

    def start(rng: random.Random, index: int) -> Steps:
        chain = _Chain.draw(rng, 5, num_variables)
        seed = rng.getrandbits(64)
        # In the older wording all samples have the same example.
        example_rng = random.Random("example") if revision == "paper" else rng  # noqa: S311
        example = ""
        if num_example_units:
            example = _example(example_rng, num_example_units, settings, revision)
        prefix = PREFIX.format(count=num_variables, assigned=assigned, value=chain.value)

        def draft(num_units: int) -> Draft:
            context, depths = _hide(chain, num_units, seed, revision)
            task = TASK.format(context=context, value=chain.value)
            return Draft(f"{example}{task} {prefix}", chain.names, depths)

        return fill(
            spec,
            draft,
            prefix,
            smallest=num_variables,
            largest=spec.length,
            tokens=linear(unit_tokens),
        )

    return start


def _hide(chain: _Chain, num_units: int, seed: int, revision: Revision) -> tuple[str, list[float]]:
    """Return noise with the assignments in it, in order, and the depth of each."""
    lines = chain.lines()
    chosen = sorted(random.Random(seed).sample(range(num_units), len(lines)))  # noqa: S311
    sentences = [NOISE] * num_units
    for shift, (place, line) in enumerate(zip(chosen, lines, strict=True)):
        sentences.insert(place + shift, line)
    context = _join(sentences, revision)
    return context, [round(context.index(line) / len(context), 4) for line in lines]


def _join(sentences: Sequence[str], revision: Revision) -> str:
    if revision == "current":
        return "\n".join(sentences)
    return " ".join(f"{text}\n" if text == NOISE else text for text in sentences)


def _example(rng: random.Random, num_units: int, settings: Settings, revision: Revision) -> str:
    chain = _Chain.draw(rng, 3, settings.num_hops + 1)
    context, _ = _hide(chain, num_units, rng.getrandbits(64), revision)
    template = _PAPER_EXAMPLE_TASK if revision == "paper" else TASK
    task = template.format(context=context, value=chain.value)
    prefix = PREFIX.format(count=len(chain.names), assigned=ASSIGNED[revision], value=chain.value)
    text = f"{task} {prefix} {' '.join(chain.names)}"
    return f" {text}\n\n\n\n" if revision == "paper" else f"{text}\n\n"


def _num_example_units(spec: SampleSpec, unit_tokens: float) -> int:
    """Return the lines of noise in the example: the most that fit, at least one per assignment.

    0 for no example.
    """
    settings: Settings = spec.settings
    if not settings.example_tokens:
        return 0
    smallest = settings.num_hops + 1

    def size(num_units: int) -> int:
        # Always the same chain, so that sizes differ by noise alone.
        rng = random.Random("size")  # noqa: S311
        return spec.count([_example(rng, num_units, settings, spec.revision)])[0]

    num_units = smallest + max(0, int((settings.example_tokens - size(smallest)) / unit_tokens))
    while num_units > smallest and size(num_units) > settings.example_tokens:
        num_units -= 1
    return num_units
