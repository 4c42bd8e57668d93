"""Wrong recipes and overrides by the thousand: each is read, or refused in plain words.

`PYTHONPATH=. python tests/config/test_fuzz.py SEED COUNT` tries others, and prints what does not
hold; with a third argument, it also writes the distinct messages to that file.
"""

import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from longred.config import load_recipe, load_recorded
from longred.config.keys import all_keys
from longred.errors import ConfigError, PreflightError
from longred.recipes import RECIPES

SMALL = """name: small
seed: 1
original_window: 256
target_window: 1024
data:
  sources:
    - {name: library, kind: library}
  num_tokens: 983040
  short_length: 128
extension: {method: abf, rope_theta: 160000}
training:
  method: longred-c
  num_steps: 60
  step_tokens: 8192 # a comment
evaluation:
  ruler:
    lengths: [256, 512]
"""

VALUES = [
    *("0", "-1", "1", "2", "4096", "1e-4", "1e3", "1_000", "010", "0x10", "0o7", "1:30", "-0.0"),
    *("1e400", "-1e308", "1e308", ".inf", "-.inf", ".nan", "nan", "infinity", "²", "٣", "1.5", "+"),
    *("true", "no", "on", "Yes", "null", "~", "", '""', "''", "abc", "longredc", "A b", "é", "\0"),
    *("2001-99-99", "2001-01-01", "2001-12-14t21:59:43.10-05:00", "!!int x", "!!float x", "!!set"),
    *("!!python/object/apply:os.system [ls]", "!!binary x", "!!timestamp x", "!local x", "!", "="),
    *("&a [*a]", "*a", "&a", "<<: {a: 1}", "{<<: *a}", "{<<: 1}", "{a: 1, a: 2}", "{[a]: 1}"),
    *("[", "]", "{", "}", "[[[[[]]]]]", "{}", "[]", "[1, 2]", "[a, 1, null]", "{a: {b: {c: 1}}}"),
    *("{long: 1}", "{lnog: 1}", "{long: x}", "{long: 1, short: 0}", "? a", "- a", "- - a", "a: b"),
    *("|\n  a\n", ">-\n  b", "%YAML 9.9", "@a", "`a`", "'a", '"a', '"\\x', '"\\UFFFFFFFF"', "#"),
    *(
        "ftp://h/x",
        "s3://b/x",
        "foo://",
        "://",
        "file:///x",
        "http://a:b@c/",
        "*.txt",
        "~/x",
        "../",
    ),
    *("\t", "a\tb", "\ufeff", "\u2028", "\ud800", "\x07", "x" * 300, "9" * 400, "9" * 5000),
    *(
        "[" * 30,
        "[" * 2000,
        "{a: " * 40,
        "- " * 50,
        "[1" + ", 1" * 800 + "]",
        "a." * 200,
        "x" * 9999,
    ),
]

TOKENS = [*":-?,#&*!|>'\"%@`{}[]=~\t\n\0é", "<<", "---", "...", ": ", " #", "null", "true"]

KEYS = ["²", "", " ", "a.b", "0", "-1", "9" * 400, "training", "<<", "null", "é", "\0", "a" * 500]

FOREIGN = re.compile(
    r"Input should|Value error|should be a valid|Extra inputs|Field required|pydantic"
    r"|greater than or equal|less than or equal|unable to parse|should have at|String should|<class"
    r"|object at 0x|Traceback|Error\(|\bctx\b|input_value|instance of|model_type|NoneType|\bcodec"
)
"""What no message says: the words of pydantic and of Python."""


class Case(NamedTuple):
    """A recipe's text, a name, or recorded settings, with overrides."""

    recipe: str | dict[str, Any]
    overrides: list[str]


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield wrong and right recipes, always the same for a seed."""
    draw = random.Random(seed)
    texts = [SMALL] * 12 + [path.read_text("utf-8") for path in sorted(RECIPES.glob("*.yaml"))]
    recorded = load_recipe("demo").model_dump(mode="json")
    for _ in range(count):
        kind = draw.random()
        if kind < 0.45:
            text = draw.choice(texts)
            for _ in range(draw.choice((1, 1, 2, 3))):
                text = draw.choice(MUTATIONS)(draw, text)
            overrides = [] if kind < 0.4 else [wrong_override(draw)]
            yield Case(text, overrides)
        elif kind < 0.9:
            yield Case(SMALL, [wrong_override(draw) for _ in range(draw.choice((1, 1, 2)))])
        else:
            yield Case(wrong_record(draw, recorded), [wrong_override(draw)][: draw.choice((0, 1))])


def wrong_override(draw: random.Random) -> str:
    """Return an override with a real or a damaged key and any value."""
    key = draw.choice(all_keys())
    kind = draw.random()
    if kind < 0.15:
        key = damaged(draw, key)
    elif kind < 0.2:
        key = draw.choice([f"--{key}", f"{key}.{draw.choice(KEYS)}", key.replace("_", "-")])
    elif kind < 0.25:
        key = key.rpartition(".")[2]
    elif kind < 0.3:
        key = f"{draw.choice(all_keys())}.{key.rpartition('.')[2]}"
    value = draw.choice(VALUES)
    if draw.random() < 0.2:
        value = damaged(draw, value[:300])
    return key + draw.choice(["=", "=", "=", "=", "=", "=", " = ", "", "=="]) + value


def damaged(draw: random.Random, text: str) -> str:
    """Return a text with a token put in, a letter taken out, or two letters exchanged."""
    place = draw.randrange(len(text) + 1)
    kind = draw.randrange(4)
    if kind == 0:
        return text[:place] + draw.choice(TOKENS) + text[place:]
    if kind == 1:
        return text[: max(0, place - 1)] + text[place:]
    if kind == 2:
        return (
            text[:place] + text[place + 1 : place + 2] + text[place : place + 1] + text[place + 2 :]
        )
    return (
        text[:place] + chr(draw.choice((draw.randrange(256), draw.randrange(65536)))) + text[place:]
    )


def wrong_record(draw: random.Random, recorded: dict[str, Any]) -> dict[str, Any]:
    """Return recorded settings in which one value, or one key, is wrong."""
    values: Any = [None, True, 1.5, -1, 10**400, 10**16, 1e308, float("nan"), "x" * 5000, [], {}]
    values += [[1] * 2000, {"a": 1}, {"a": {"b": [None]}}, "\ud800", "abc", [None], 0]
    copied: dict[str, Any] = json.loads(json.dumps(recorded))
    node: Any = copied
    while True:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if draw.random() < 0.4 or not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    node[key] = draw.choice(values)
    if draw.random() < 0.2 and isinstance(node, dict):
        node[draw.choice(KEYS)] = node.pop(key)
    return copied


def _of_lines(change: Callable[[random.Random, list[str], int], None]) -> Any:
    def mutate(draw: random.Random, text: str) -> str:
        lines = text.split("\n")
        change(draw, lines, draw.randrange(len(lines)))
        return "\n".join(lines)

    return mutate


def _new_value(draw: random.Random, lines: list[str], at: int) -> None:
    lines[at] = lines[at].partition(":")[0] + ": " + draw.choice(VALUES)


def _new_key(draw: random.Random, lines: list[str], at: int) -> None:
    name = lines[at].strip().partition(":")[0]
    new = draw.choice([damaged(draw, name), draw.choice(KEYS), draw.choice(all_keys())])
    lines[at] = lines[at].replace(name, new, 1)


def _swap(draw: random.Random, lines: list[str], at: int) -> None:
    other = draw.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]


MUTATIONS: list[Callable[[random.Random, str], str]] = [
    damaged,
    lambda draw, text: text[: draw.randrange(len(text) + 1)],
    lambda draw, text: text + draw.choice(["---\na: 1", "...\nx", "training: {}\n", "\x00", "- a"]),
    _of_lines(_new_value),
    _of_lines(_new_value),
    _of_lines(_new_value),
    _of_lines(_new_key),
    _of_lines(_new_key),
    _of_lines(_swap),
    _of_lines(lambda draw, lines, at: lines.insert(at, draw.choice(lines))),
    _of_lines(lambda draw, lines, at: lines.__delitem__(at)),
    _of_lines(lambda draw, lines, at: lines.__setitem__(at, " " * draw.randrange(9) + lines[at])),
    _of_lines(lambda draw, lines, at: lines.__setitem__(at, lines[at].lstrip())),
]


def outcome(case: Case, path: Path) -> str | None:
    """Return the message that refuses a case, or None if it is read."""
    try:
        if isinstance(case.recipe, dict):
            config = load_recorded(case.recipe, case.overrides)
        else:
            path.write_bytes(case.recipe.encode("utf-8", "surrogatepass"))
            config = load_recipe(path, case.overrides)
    except (ConfigError, PreflightError) as error:
        return str(error)
    json.dumps(config.model_dump(mode="json"), allow_nan=False).encode()
    json.dumps({name: str(value) for name, value in config.digest_values().items()}).encode()
    return None


def wrong_with(message: str) -> str | None:
    """Return what a message should not be like, or None."""
    lines = message.split("\n")
    if len(lines) > 11:
        return f"{len(lines)} problems"
    if (long := max(map(len, lines))) > 600:
        return f"a problem of {long} characters"
    if found := FOREIGN.search(message):
        return f"it says {found[0]!r}"
    if not all(line.isprintable() and line.strip() for line in lines):
        return "it is not printable"
    if not all(": " in line or line.startswith("and ") for line in lines):
        return "it names no key or file"
    return None


def failures(seed: int, count: int, path: Path, messages: set[str]) -> Iterator[str]:
    """Yield what does not hold for the cases of a seed; collect the messages."""
    for number, case in enumerate(cases(seed, count)):
        try:
            message = outcome(case, path)
        except Exception as error:
            yield f"{number}: {type(error).__name__}: {str(error)[:300]}: {str(case)[:1000]}"
            continue
        if message is not None:
            messages.add(message)
            if problem := wrong_with(message):
                yield f"{number}: {problem}: {message[:700]!r}: {case.overrides!r}"[:1500]


@pytest.mark.slow
def test_ten_thousand_wrong_recipes_are_read_or_refused_in_plain_words(tmp_path: Path) -> None:
    messages: set[str] = set()
    found = list(failures(0, 10_000, tmp_path / "r.yaml", messages))
    assert not found, f"{len(found)} cases, the first:\n" + "\n".join(found[:5])
    assert len(messages) > 3000, "the cases are too much alike to say anything"


def test_a_message_in_foreign_words_or_too_long_is_noticed() -> None:
    assert wrong_with("training.num_steps: must be a whole number of 1 or more, got x") is None
    assert wrong_with("training.num_steps: Input should be a valid integer") is not None
    assert wrong_with("a: " + "x" * 600) is not None
    assert wrong_with("a: \x07") is not None
    assert wrong_with("\n".join(["a: b"] * 12)) is not None


def main() -> None:
    """Try the cases of a seed, and print what does not hold."""
    messages: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        found = 0
        for line in failures(int(sys.argv[1]), int(sys.argv[2]), Path(folder) / "r.yaml", messages):
            found += 1
            print(line)
    print(f"{found} of {sys.argv[2]} cases are wrong; {len(messages)} messages")
    if sys.argv[3:]:
        Path(sys.argv[3]).write_text("\n".join(sorted(messages)), "utf-8", "backslashreplace")


if __name__ == "__main__":
    main()
