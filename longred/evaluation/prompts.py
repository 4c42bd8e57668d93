"""Prompts of generated answers: a sample as plain text, or as the messages of a chat.

A sample has `input` (what is asked) and may have:

- `prefix`: beginning of the answer, in both forms;
- `suffix`: text directly behind the input, in the plain form only; it is scored with the answer;
- `turns`: messages before the input, each with `role` and `content`;
- `until`: texts that end the answer; `until_plain` replaces it in the plain form.

Without `turns` the plain form is the input itself. With `turns` it names the speakers, `User:` and
`Assistant:`, with a blank line between turns, and ends with `Assistant:`.
"""

from collections.abc import Mapping
from typing import Any

Message = dict[str, str]


def plain_prompt(sample: Mapping[str, Any]) -> str:
    """Return the prompt of a sample for a model without chat template."""
    text: str = sample["input"] + sample.get("suffix", "")
    if "turns" in sample:
        turns = [*sample["turns"], {"role": "user", "content": text}]
        spoken = (f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
        text = "\n\n".join([*spoken, "Assistant:"])
    prefix = sample.get("prefix")
    if not prefix:
        return text
    is_apart = text[-1:].isspace() or prefix[0].isspace()
    return f"{text}{'' if is_apart else ' '}{prefix}"


def messages(sample: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a sample for a chat model; the last one may begin the answer."""
    found = [*sample.get("turns", ()), {"role": "user", "content": sample["input"]}]
    if prefix := sample.get("prefix"):
        found.append({"role": "assistant", "content": prefix})
    return found


def stops(sample: Mapping[str, Any], *, in_chat: bool) -> list[str]:
    """Return the texts that end the answer to a sample.

    Samples that name none end at the line, or with RULER's full parameters at the budget, as its
    own evaluation does.
    """
    if "until_plain" in sample and not in_chat:
        return list(sample["until_plain"])
    default = [] if sample.get("parameters") == "full" else ["\n"]
    return list(sample.get("until", default))
