"""Writes a recipe as YAML, with a comment on each line that needs one."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from longred.config import RunConfig
from longred.recipes import RECIPES

WIDTH = 100
"""Columns of the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a recipe.

    Attributes:
        key: its dotted key.
        value: plain value.
        why: comment; empty for none.
    """

    key: str
    value: Any
    why: str = ""


def nested(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the settings in groups, as a recipe's file holds them."""
    values: dict[str, Any] = {}
    for entry in entries:
        *sections, last = entry.key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = entry.value
    return values


def recipe_text(entries: Sequence[Entry]) -> str:
    """Return the YAML file of some lines; sections stand in the order of `RunConfig`."""
    tree: dict[str, Any] = {}
    for entry in entries:
        *sections, last = entry.key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = entry
    order = [name for name in RunConfig.model_fields if name in tree]
    blocks = ["".join(f"{line}\n" for line in _lines(name, tree[name], 0)) for name in order]
    head = [block for block, name in zip(blocks, order, strict=True) if _is_entry(tree[name])]
    sections = [b for b, name in zip(blocks, order, strict=True) if not _is_entry(tree[name])]
    editor = f"# yaml-language-server: $schema={RECIPES / 'schema.json'}\n"
    return "\n".join([editor + "".join(head), *sections])


def _is_entry(node: Any) -> bool:
    return isinstance(node, Entry)


def _lines(name: str, node: Any, depth: int) -> Iterator[str]:
    """Yield the lines of a key or section."""
    indent = "  " * depth
    if not isinstance(node, Entry):
        yield f"{indent}{name}:"
        for key, child in node.items():
            yield from _lines(key, child, depth + 1)
        return
    is_list_of_sections = isinstance(node.value, list) and any(
        isinstance(item, Mapping) for item in node.value
    )
    if is_list_of_sections:
        yield from _comment(node.why, indent)
        yield f"{indent}{name}:"
        for item in node.value:
            yield f"{indent}  - {_flow(item)}"
        return
    line = f"{indent}{name}: {_flow(node.value)}"
    if node.why and len(line) + len(node.why) + 3 <= WIDTH:
        yield f"{line} # {node.why}"
        return
    yield from _comment(node.why, indent)
    yield line


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH - len(indent) - 2):
        yield f"{indent}# {line}"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, float):
        # YAML 1.1 reads 2e-05 as text.
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else repr(value)
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
