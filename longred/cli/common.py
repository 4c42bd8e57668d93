"""What the verbs share."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longred.artifacts import Store

Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the recipe", metavar="[SECTION.KEY=VALUE]...")
]
StoreOption = Annotated[str | None, typer.Option("--store", help="the store (default: outputs)")]


def open_store(path: str | None) -> "Store":
    """Return the store that is named, else the environment's, else the default one."""
    from longred.artifacts import Store
    from longred.config import StoreConfig
    from longred.runs import STORE_VARIABLE

    return Store(path or os.environ.get(STORE_VARIABLE) or StoreConfig().path)
