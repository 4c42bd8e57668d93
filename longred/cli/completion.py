"""What the shell completes: recipes, runs and stages, by the name of a verb's parameter.

A press of TAB starts the command, so nothing heavy is imported.
"""

import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.models import ParameterInfo

from longred.cli.common import open_store
from longred.errors import LongredError


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Return `latest` and the ids of the store's runs, newest first."""
    from longred.runs.record import list_runs

    try:
        runs = list_runs(open_store(context.params.get("store")))
    except (LongredError, OSError):
        runs = []  # an unreadable store must not print an error into the command line
    return [name for name in ["latest", *reversed(runs)] if name.startswith(incomplete)]


def complete_recipe(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the packaged recipes; after the first letters of a run, runs as well."""
    from longred.recipes import RECIPES

    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    found = [name for name in names if name.startswith(incomplete)]
    return found + (complete_run(context, incomplete) if incomplete else [])


def complete_stage(incomplete: str) -> list[str]:
    """Return the stages that `--only` and `--from` accept."""
    from longred.runs.scope import STAGES

    return [stage for stage in STAGES[1:] if stage.startswith(incomplete)]


COMPLETIONS: dict[str, Callable[..., list[str]]] = {
    "recipe": complete_recipe,
    "run_id": complete_run,
    "run_ids": complete_run,
    "artifact": complete_run,
    "only": complete_stage,
    "start": complete_stage,
}
"""Parameter of a verb → its completion."""


def add_completions(verb: Callable[..., Any]) -> None:
    """Give a verb's parameters their completions, before the verb is registered."""
    for name, parameter in inspect.signature(verb).parameters.items():
        for note in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(note, ParameterInfo) and name in COMPLETIONS:
                note.autocompletion = COMPLETIONS[name]
