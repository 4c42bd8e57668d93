"""Two benchmarks of OpenAI: MRCR (similar texts in a conversation) and GraphWalks (graph search).

Both are MIT-licensed data sets on the hub, openai/mrcr and openai/graphwalks, whose rows changed
under the same names: MRCR in December 2025, GraphWalks in February 2026. Scores of other files are
not comparable.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from longred.errors import ConfigError
from longred.evaluation.counting import count_tokens
from longred.evaluation.published.reading import Reading, shuffled
from longred.evaluation.tasks import Row

BUDGET_STEP = 256
"""Budgets are multiples of it, so that samples with different references share batches."""


class _Turn(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _Conversation(BaseModel):
    prompt: str
    answer: str
    random_string_to_prepend: str = Field(min_length=1)
    n_needles: int | None = None


class _Walk(BaseModel):
    prompt: str
    answer_nodes: list[str] | None = None
    answer: list[str] | None = None
    problem_type: str


_TURNS = TypeAdapter(list[_Turn])


def read_mrcr(reading: Reading) -> Iterator[Row]:
    """Yield conversations that end with the wish for one of several similar texts.

    `num_needles` selects rows. The budget is that of the reference and 256 tokens, rounded up to a
    multiple of 256: OpenAI sets none, and a longer answer only lowers the ratio.
    """
    wanted = reading.settings["num_needles"]
    for number in shuffled(len(reading.test), reading.seed):
        row = reading.test.row(number, _Conversation)
        if wanted is not None and row.n_needles != wanted:
            continue
        place = reading.test.place(number)
        turns = _turns(row.prompt, place)
        if not row.answer.startswith(row.random_string_to_prepend):
            raise ConfigError(f"{place}: answer: does not begin with random_string_to_prepend")
        yield {
            "id": f"{reading.name}-{number}",
            "turns": turns[:-1],
            "input": turns[-1]["content"],
            "outputs": [row.answer],
            "random_prefix": row.random_string_to_prepend,
            "max_new_tokens": _budget(reading, row.answer, BUDGET_STEP),
            "until": [],
            "until_plain": ["\n\nUser:"],
        }


def read_graphwalks(reading: Reading) -> Iterator[Row]:
    """Yield graphs with the question for a set of nodes.

    `problem_type` (`parents` or `bfs`) selects rows. The budget is that of the reference and
    `extra_tokens`, for what a model writes before its answer, rounded up to a multiple of 256. The
    plain form ends with `Final Answer:`, so that a base model answers at once, in one line.
    """
    wanted = reading.settings["problem_type"]
    for number in shuffled(len(reading.test), reading.seed):
        row = reading.test.row(number, _Walk)
        if wanted is not None and row.problem_type.lower() != wanted:
            continue
        nodes = row.answer_nodes if row.answer_nodes is not None else row.answer
        if nodes is None:
            raise ConfigError(f"{reading.test.place(number)}: has no `answer_nodes`")
        reference = f"Final Answer: [{', '.join(nodes)}]"
        yield {
            "id": f"{reading.name}-{number}",
            "input": row.prompt,
            "suffix": ("" if row.prompt.endswith("\n") else "\n") + "Final Answer:",
            "outputs": nodes,
            "max_new_tokens": _budget(reading, reference, reading.settings["extra_tokens"]),
            "until": [],
            "until_plain": ["\n"],
        }


def _turns(prompt: str, place: str) -> list[dict[str, Any]]:
    """Return the messages of a prompt, the last one by the user."""
    try:
        turns = _TURNS.validate_python(json.loads(prompt))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: prompt: is not valid JSON ({error})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{place}: prompt.{where}: {problem['msg']}") from None
    if not turns or turns[-1].role != "user":
        raise ConfigError(f"{place}: prompt: does not end with a message of the user")
    return [turn.model_dump() for turn in turns]


def _budget(reading: Reading, reference: str, extra: int) -> int:
    size = count_tokens(reading.tokenizer, reference) + extra
    return -(-size // BUDGET_STEP) * BUDGET_STEP
