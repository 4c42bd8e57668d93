"""Read YAML strictly: what a recipe and an override may hold, and one error for everything else.

A plain or quoted scalar is its text, except that a plain `null`, `~` or nothing is None: the type
of the setting decides what the text means. So `no`, `010`, `1:30`, `2001-01-01` and a commit of
digits alone are what they look like where text is wanted, and `1e-4` is a number where a number is.
Tags, anchors, aliases, merge keys, second documents and keys given twice are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from longred.errors import ConfigError, shorten, shown

MAX_BYTES = 1_000_000
"""Most bytes of a recipe file, and characters of an override."""

MAX_DEPTH = 20
"""Most levels of groups and lists inside each other."""

_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
"""The C parser is twenty times as fast, and missing on rare platforms."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})

_INDENTED = "a line is indented otherwise than its group, or text needs quotes"

_QUOTED = "put text with such characters in quotes"

_HINTS = {
    "mapping values are not allowed": "text with a colon and a space in it needs quotes",
    "cannot start any token": "indent with spaces, not tabs; text that starts with one of %@` "
    "needs quotes",
    "found unexpected end of stream": "a quote is not closed",
    "did not find expected node content": "a bracket is not closed, or text needs quotes",
    "did not find expected key": _INDENTED,
    "block end": _INDENTED,
    "escape c": "a backslash in double quotes starts an escape; use single quotes",
    "hexdecimal": "a backslash in double quotes starts an escape; use single quotes",
    "hexadecimal": "a backslash in double quotes starts an escape; use single quotes",
    "expected ',' or '}'": "a bracket { is not closed",
    "expected ',' or ']'": "a bracket [ is not closed",
    "could not find expected ':'": "a key needs a colon and a space behind it",
    "alphabetic or numeric": "text that starts with * or & needs quotes",
    "special characters are not allowed": "remove the control character",
    "control characters are not allowed": "remove the control character",
    "surrogate": "remove it",
}
"""Part of a YAML parser's message → what usually is the matter."""


@dataclass(slots=True)
class _Group:
    """A group or list that is being read.

    Attributes:
        content: what was read of it so far.
        prefix: its dotted key with a dot, or nothing.
        key: in a group, the key whose value comes next.
        lines: line of each key.
    """

    content: dict[str, Any] | list[Any]
    prefix: str
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


class _Reader:
    """Builds plain values from the parser's events, without recursion.

    Args:
        source: what messages start with: the path of a file, or the key of an override.
        has_lines: whether messages name the line.
        prefix: dotted key of the text in the recipe, with a dot, or nothing.
    """

    def __init__(self, source: str, *, has_lines: bool, prefix: str = "") -> None:
        self.source, self.has_lines, self.prefix = source, has_lines, prefix
        self.root: Any = None
        self.lines: dict[str, int] = {}
        self.num_documents = 0
        self.open: list[_Group] = []

    def refuse(self, line: int | None, problem: str) -> ConfigError:
        place = f"{self.source}:{line}" if self.has_lines and line else self.source
        if not self.has_lines and problem.startswith(f"{self.source}."):
            # A key inside an override's value names the override already.
            return ConfigError(shorten(problem))
        return ConfigError(shorten(f"{place}: {problem}"))

    def read(self, text: str) -> Any:
        for event in self._events(text):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self.num_documents += 1
                if self.num_documents > 1:
                    raise self.refuse(line, "holds a second document (---); keep only one")
            elif isinstance(event, yaml.NodeEvent):
                self._check(event, line)
                self._node(event, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.open.pop()
        return self.root

    def _events(self, text: str) -> Iterator[Any]:
        if len(text) > MAX_BYTES:
            raise self.refuse(None, f"is longer than {MAX_BYTES:,} characters")
        events = yaml.parse(text, Loader=_LOADER)
        while True:
            try:
                event = next(events, None)
            # PyYAML lets other errors through: bad escapes, numbers in directives, encodings.
            except Exception as error:
                raise self._not_yaml(text, error) from None
            if event is None:
                return
            yield event

    def _not_yaml(self, text: str, error: Exception) -> ConfigError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark else None
        if isinstance(error, yaml.reader.ReaderError):
            line = text.count("\n", 0, error.position) + 1
            problem = str(error.reason)
        elif isinstance(error, UnicodeError):
            problem = "it holds half a character (a lone surrogate)"
        else:
            problem = str(getattr(error, "problem", None) or "an escape or a directive is wrong")
        hint = next((hint for part, hint in _HINTS.items() if part in problem), "")
        if not hint and text.lstrip().startswith(("*", "&", "!", "%", "@", "`")):
            hint = "text that starts with one of *&!%@` needs quotes"
        if not self.has_lines and (not hint or "tabs" in hint):
            hint = _QUOTED
        what = "is not valid YAML" if self.has_lines else f"{shown(text)} is not valid YAML"
        return self.refuse(line, f"{what} ({shown(problem, 100)})" + (f"; {hint}" if hint else ""))

    def _check(self, event: Any, line: int) -> None:
        """Refuse what a recipe has no use for.

        Raises:
            ConfigError: the node has a tag, an anchor, or is an alias.
        """
        if event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise self.refuse(
                line,
                f"{shown(sign + event.anchor)}: anchors and aliases are not read; write the value "
                f"out, or put text that starts with {sign} in quotes",
            )
        if event.tag is not None:
            tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise self.refuse(
                line,
                f"{tag}: tags are not read; leave it out, since the setting decides the type, or "
                "put text that starts with ! in quotes",
            )

    def _node(self, event: Any, line: int) -> None:
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            # The two parsers name the plain style None and ''.
            is_null = not event.style and event.value in _NULLS
            value = None if is_null else event.value
            if self._is_key():
                self._start_item(event.value, not event.style, line)
                return
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
            if self._is_key():
                raise self.refuse(line, "a key must be text, not a group or a list")
        key = self._place(value, line)
        if not isinstance(event, yaml.ScalarEvent):
            if len(self.open) >= MAX_DEPTH:
                raise self.refuse(line, f"holds more than {MAX_DEPTH} levels of groups and lists")
            self.open.append(_Group(value, f"{key}." if key else self.prefix))

    def _is_key(self) -> bool:
        group = self.open[-1] if self.open else None
        return group is not None and isinstance(group.content, dict) and group.key is None

    def _start_item(self, key: str, is_plain: bool, line: int) -> None:
        """Take a scalar as the key of the next value.

        Raises:
            ConfigError: it is a merge key, or stands in this group already.
        """
        group = self.open[-1]
        dotted = group.prefix + key
        if is_plain and key == "<<":
            raise self.refuse(line, f"{shown(dotted)}: groups are not merged; write the keys out")
        if key in group.lines:
            first = group.lines[key]
            where = f", in lines {first} and {line}" if self.has_lines else ""
            if self.has_lines and first == line:
                where = f" in line {line}"
            raise self.refuse(line, f"{shown(dotted, 200)}: is given twice{where}; remove one")
        group.key, group.lines[key] = key, line
        self.lines[dotted] = line

    def _place(self, value: Any, line: int) -> str:
        """Add a value to the innermost group or list; return its dotted key."""
        if not self.open:
            self.root = value
            return ""
        group = self.open[-1]
        if isinstance(group.content, list):
            key = f"{group.prefix}{len(group.content)}"
            group.content.append(value)
            self.lines[key] = line
            return key
        name = str(group.key)
        group.content[name] = value
        group.key = None
        return group.prefix + name


def read_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """Return the content of a YAML file, and the line (from 1) of every dotted key.

    Args:
        text: the content; None if it holds nothing.
        source: the path that messages name.

    Raises:
        ConfigError: it is not YAML, or has something that a recipe cannot have; names the line.
    """
    reader = _Reader(source, has_lines=True)
    return reader.read(text), reader.lines


def read_value(text: str, key: str) -> Any:
    """Return the value of an override.

    Args:
        text: the value as YAML.
        key: the dotted key that messages name.

    Raises:
        ConfigError: as `read_yaml` does; names the key.
    """
    return _Reader(shown(key, 200), has_lines=False, prefix=f"{key}.").read(text)
