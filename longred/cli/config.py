"""`longred config`: prints what a recipe can set, from the fields of the sections."""

import dataclasses
import json
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.errors import ConfigError, shown

if TYPE_CHECKING:
    from longred.config.describe import Key

DEFAULT_WIDTH = 13
MAX_WIDTH = 100


def config(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION[.KEY]]", help="a section or a key; default: all sections"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of a recipe, for editors")
    ] = False,
) -> None:
    """Print what a recipe can set: the sections, a section's keys, or all about one key."""
    from longred.config import describe

    if schema:
        if name or as_json:
            raise ConfigError("--schema: prints the whole schema; leave out the name and --json")
        typer.echo(schema_text(), nl=False)
        return
    if name and "=" in name:
        raise ConfigError(
            f"{shown(name, 200)}: this verb only prints what can be set; set it in a recipe, or as "
            f"in `longred run demo {shown(name, 200)}`"
        )
    known = describe.groups()
    group = describe.without_numbers(name or "")
    found = describe.keys(group) if group in known or not name else [describe.key(name)]
    if as_json:
        values = [dataclasses.asdict(each) for each in found]
        typer.echo(json.dumps([_without_pattern(each) for each in values], indent=2))
    elif not name:
        _print_sections(known, found)
    elif group in known:
        _print_group(group, known, found)
    else:
        _print_key(found[0])


def schema_text() -> str:
    """Return the JSON Schema of a recipe as `longred/recipes/schema.json` holds it."""
    from longred.config import describe

    return json.dumps(describe.json_schema(), indent=1, ensure_ascii=False) + "\n"


def _without_pattern(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "pattern"}


def _print_sections(groups: Mapping[str, str], keys: Iterable["Key"]) -> None:
    _print_keys([(key.name, key) for key in keys if "." not in key.name])
    typer.echo("")
    _print_rows([(name, text) for name, text in groups.items() if "." not in name])
    typer.echo(
        "\nlongred config SECTION prints its keys, longred config SECTION.KEY all about one."
    )


def _print_group(group: str, groups: Mapping[str, str], keys: Iterable["Key"]) -> None:
    typer.echo(textwrap.fill(f"{group}: {groups[group]}", _width()) + "\n")
    _print_keys([(key.name.removeprefix(f"{group}."), key) for key in keys])
    typer.echo(f"\nlongred config {group}.KEY prints all about one.")


def _print_keys(keys: Iterable[tuple[str, "Key"]]) -> None:
    """Print name, default and first sentence of keys, in columns."""
    _print_rows(
        [
            (name, textwrap.shorten(key.default_text, DEFAULT_WIDTH, placeholder="…"), key.summary)
            for name, key in keys
        ]
    )


def _print_rows(rows: list[tuple[str, ...]]) -> None:
    """Print rows as columns; the last column is wrapped."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    for *cells, text in rows:
        start = "".join(f"{cell:<{n}}  " for cell, n in zip(cells, widths, strict=True))
        typer.echo(
            textwrap.fill(
                text,
                _width(),
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_on_hyphens=False,
            )
        )


def _print_key(key: "Key") -> None:
    typer.echo(f"{key.name}\n")
    typer.echo(textwrap.fill(key.description, _width(), break_on_hyphens=False) + "\n")
    facts = {
        "type": key.type_text,
        "unit": key.unit,
        "default": key.default_text,
        "changes": _effect(key),
        "example": _for_shell(key.example),
        "recipes": _in_recipes(key),
        "items": f"longred config {key.name}.N" if "a group of settings" in key.type_text else None,
    }
    _print_rows([(name, fact) for name, fact in facts.items() if fact])


def _for_shell(override: str) -> str:
    name, _, value = override.partition("=")
    return f"{name}={shlex.quote(value)}"


def _effect(key: "Key") -> str:
    """Return what changing a key does to finished stages."""
    from longred.config.run import readers
    from longred.runs.scope import STAGES

    if key.is_runtime:
        return "rebuilds nothing: a runtime setting, in no digest"
    stages = [stage for stage in STAGES if stage in readers(key.name)] or ["report"]
    return f"rebuilds {', '.join(stages)}, and the later stages that read this"


def _in_recipes(key: "Key") -> str:
    """Return the values that packaged recipes set."""
    import yaml

    from longred.config.describe import yaml_text
    from longred.recipes import RECIPES

    found: dict[str, list[str]] = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        for part in key.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and len(yaml_text(value)) <= MAX_WIDTH:
            found.setdefault(yaml_text(value), []).append(path.stem)
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in found.items())


def _width() -> int:
    return min(shutil.get_terminal_size().columns, MAX_WIDTH)
