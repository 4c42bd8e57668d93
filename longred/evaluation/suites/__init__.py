"""Which short tasks belong together, as data: one YAML file a suite, capacity by capacity."""

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from longred.errors import ConfigError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A short task and how its score is read.

    Attributes:
        name: the task's generator in `longred.evaluation.short.TASKS`.
        capacity: what it stands for: the short average is the mean over capacities of the mean
            over the tasks of each.
        metric: `choice` or `exact_match`.
        chance: percent that guessing scores.
    """

    name: str
    capacity: str
    metric: str
    chance: float

    def to_json(self) -> dict[str, str | float]:
        """Return the fields as JSON values."""
        return asdict(self)


def load_suite(name: str) -> list[SuiteTask]:
    """Return the tasks of a packaged suite, in the order of its file.

    Raises:
        ConfigError: there is no such suite.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"evaluation.short.suite: {name} is unknown; known suites: {', '.join(known)}"
        )
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return [
        SuiteTask(name=task, capacity=capacity, **settings)
        for capacity, tasks in values["capacities"].items()
        for task, settings in tasks.items()
    ]
