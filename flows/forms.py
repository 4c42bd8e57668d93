"""What the deployments' forms ask for: types that refuse a wrong value before a run exists."""

from typing import Annotated, Literal

from pydantic import Field

from longred.config import key_pattern
from longred.runs.record import RUN_ID
from longred.runs.scope import STAGES, WHAT_CHANGED

Overrides = list[Annotated[str, Field(pattern=key_pattern())]]
StartFrom = Literal[(WHAT_CHANGED, *STAGES[1:])]
EarlierRun = Annotated[str, Field(pattern=f"^(latest|{RUN_ID})$")]


def changes_to(section: str) -> type[list[str]]:
    """Return the type of a list of overrides that keep to one section."""
    return list[Annotated[str, Field(pattern=key_pattern(section))]]  # type: ignore[return-value]
