"""What Prefect's forms ask for: types of the flows' parameters, refused in words when wrong.

The server checks a form before a flow run exists, by JSON Schema, whose messages quote the pattern
that a text does not match. The exact patterns therefore stand in a condition, and what is quoted is
advice. The flow itself then names the nearest key.
"""

from typing import Annotated, Any

from pydantic import Field

from longred.config.describe import check_overrides, keys, override_pattern
from longred.errors import ConfigError
from longred.runs.record import RUN_ID, is_run_name

EXAMPLE_RUN = "20260131-094500-demo-2e11"


def text_like(pattern: str, advice: str) -> Any:
    """Return the type of texts that match a pattern, refused with advice."""
    schema: dict[str, Any] = {"if": {"pattern": pattern}, "else": {"pattern": advice}}
    return Annotated[str, Field(json_schema_extra=schema)]


def overrides_of(section: str | None = None) -> Any:
    """Return the type of overrides of a section's keys; None for all sections."""
    where = f" {section}" if section else ""
    advice = f"{section or 'section'}.key=value, with a key that `longred config{where}` prints"
    return list[text_like(override_pattern(section), advice)]


def overrides_text(section: str) -> str:
    """Return the description of a form's field for overrides of one section, in one line."""
    found = keys(section)
    names = ", ".join(key.name.removeprefix(f"{section}.") for key in found)
    numbers = [key for key in found if key.type_text.startswith(("a number", "a whole"))]
    example = next(key.example for key in numbers if ".N." not in key.name)
    return (
        f"changes to its settings, one in each item, such as `{example}`. "
        f"`longred config {section}` explains the keys: {names}."
    )


def check_stage_form(stage: str, run: str, overrides: list[str]) -> None:
    """Check what a form checks, and name the nearest key: not every caller is checked by a server.

    Raises:
        ConfigError: the run is no run, or an override is not one of the stage's.
    """
    if not is_run_name(run):
        raise ConfigError(f"run: {run!r} is neither `latest` nor an id such as {EXAMPLE_RUN}")
    check_overrides(overrides, stage)


EarlierRun = text_like(
    f"^(latest|{RUN_ID})$", "latest, or the id of a run as `longred show` has it"
)
