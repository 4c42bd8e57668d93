"""Words for a wrong command line: one line that names the option, what is wrong, what to do."""

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer

from longred.errors import ConfigError, shorten, shown

# Typer has carried a click of its own since 0.26; both have the same classes.
CommandError: Any = typer.BadParameter.__mro__[2]
"""Typer's error about a wrong command line."""

_NUMBERS = {"int": "a whole number", "float": "a number"}
_BOUNDS = {
    "greater_than_equal": "{:g} or more",
    "greater_than": "more than {:g}",
    "less_than_equal": "{:g} or less",
    "less_than": "less than {:g}",
}


def usage_error(error: Any, verbs: Sequence[str]) -> ConfigError:
    """Return the error to show for a wrong command line.

    Args:
        error: what typer raised.
        verbs: the names of all verbs.
    """
    # Some errors do not know their verb.
    verb = next((word for word in sys.argv[1:2] if word in verbs), None)
    program = f"longred {verb}" if verb else "longred"
    look = f"`{program} --help`"
    text = error.format_message().rstrip(".")
    name = _parameter(error)
    if unknown := re.fullmatch(r"No such command '(.*?)'.*", text, re.DOTALL):
        message = _unknown_verb(unknown[1], verbs)
    elif unknown := re.match(r"No such option:? '?(-[^\s']*)", text):
        near = _options_that_begin(error, unknown[1])
        near = near or sorted(getattr(error, "possibilities", None) or [])
        advice = f"did you mean {' or '.join(near)}?" if near else f"{look} lists the options"
        if program == "longred" and not near:
            advice = "options follow a verb, as in `longred show --store outputs`; see " + look
        message = f"{shown(unknown[1], 200)}: no such option; {advice}"
    elif extra := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text, re.S):
        message = f"{shown(extra[1], 200)}: {program} takes no further argument; see {look}"
    elif text.startswith("Missing "):
        message = f"{name}: is missing; see {look}"
    elif text.startswith("Invalid value"):
        message = f"{name}: {_wrong_value(error)}; see {look}"
    elif name:
        rest = text.partition("' ")[2].replace("requires an argument", "needs a value")
        message = f"{name}: {rest or text}; see {look}"
    else:
        message = f"{text}; see {look}"
    return ConfigError(shorten(message))


def _options_that_begin(error: Any, name: str) -> list[str]:
    """Return the options of the verb that an unknown one is the beginning of."""
    if error.ctx is None or len(name) < 4:
        return []
    options = [option for each in error.ctx.command.params for option in each.opts]
    return [option for option in options if option.startswith(name)]


def _parameter(error: Any) -> str:
    """Return the option, or the argument in capitals, that an error is about; else nothing."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return getattr(error, "option_name", None) or ""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return str(max(parameter.opts, key=len))


def _unknown_verb(name: str, verbs: Sequence[str]) -> str:
    from longred.recipes import RECIPES

    if name.endswith((".yaml", ".yml")) or (RECIPES / f"{name}.yaml").is_file():
        return f"{name}: is a recipe, not a verb; write `longred run {name}`"
    near = difflib.get_close_matches(name.lower(), verbs, n=2) or {"train": ["run"]}.get(name, [])
    near = near or [verb for verb in verbs if name and verb.startswith(name.lower())]
    advice = f"did you mean {' or '.join(near)}?" if near else "`longred --help` lists the verbs"
    return f"{shown(name, 200)}: no such verb; {advice}"


def _wrong_value(error: Any) -> str:
    """Return what an option's value must be, and what it is."""
    cause = error.__cause__
    if not hasattr(cause, "errors"):
        return str(error.message)
    from longred.config.messages import number_hint

    problem = cause.errors(include_url=False)[0]
    kind, value = problem["type"], problem["input"]
    if kind in _BOUNDS:
        (bound,) = problem["ctx"].values()
        must = _BOUNDS[kind].format(bound)
    elif kind.partition("_")[0] in _NUMBERS:
        must = _NUMBERS[kind.partition("_")[0]]
    else:
        must = "another value"
    hint = number_hint(value) if isinstance(value, str) and kind not in _BOUNDS else ""
    return f"must be {must}, got {shown(value)}" + (f"; {hint}" if hint else "")
