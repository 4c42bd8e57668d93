"""Prompts in the plain form and as messages."""

from itertools import product
from typing import Any

import pytest
from lm_eval.api.utils import maybe_delimit

from longred.evaluation.prompts import messages, plain_prompt, stops


@pytest.mark.parametrize(
    ("question", "prefix"), [*product(("Q", "Q ", "Q\n"), ("A", " A", "\nA", "", None))]
)
def test_prefixes_join_as_in_lm_eval(question: str, prefix: str | None) -> None:
    sample = {"input": question} if prefix is None else {"input": question, "prefix": prefix}
    assert plain_prompt(sample) == maybe_delimit(question, prefix)


def test_turns_come_before_the_input() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
    ]
    sample = {"turns": turns, "input": "Three?", "suffix": " Say", "prefix": "It is"}
    assert plain_prompt(sample) == (
        "System: Be brief.\n\nUser: One?\n\nAssistant: Two.\n\nUser: Three? Say\n\nAssistant: It is"
    )
    # The suffix is for models without template; the prefix begins the answer of a chat model too.
    assert messages(sample) == [
        *turns,
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "It is"},
    ]


@pytest.mark.parametrize(
    ("sample", "plain", "chat"),
    [
        ({}, ["\n"], ["\n"]),
        ({"parameters": "full"}, [], []),
        ({"parameters": "compact"}, ["\n"], ["\n"]),
        ({"until": []}, [], []),
        ({"until": ["."], "parameters": "full"}, ["."], ["."]),
        ({"until": [], "until_plain": ["\n\n"]}, ["\n\n"], []),
    ],
)
def test_what_ends_an_answer(sample: dict[str, Any], plain: list[str], chat: list[str]) -> None:
    assert (stops(sample, in_chat=False), stops(sample, in_chat=True)) == (plain, chat)
