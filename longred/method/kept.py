"""Students on the way: which steps' students are kept, where they lie and what they are called."""

from collections.abc import Sequence
from typing import Protocol

FOLDER = "kept"


class KeepSettings(Protocol):
    """The settings that say what is kept."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the training."""

    @property
    def keep_steps(self) -> Sequence[int]:
        """The steps whose students are kept."""


def kept_problem(settings: KeepSettings) -> str | None:
    """Return what is wrong with the steps that are to be kept, naming the key, or None."""
    steps, num_steps = list(settings.keep_steps), settings.num_steps
    wrong = [step for step in steps if not 1 <= step < num_steps]
    if wrong:
        return (
            f"training.keep_steps: {wrong} do not lie before the last step; give steps from 1 to "
            f"{num_steps - 1}, since the student of step {num_steps} is the result"
        )
    if steps != sorted(set(steps)):
        return f"training.keep_steps: {steps} must rise, each step once"
    return None


def kept_place(step: int) -> str:
    """Return where a training's folder keeps the student of a step."""
    return f"{FOLDER}/step-{step:06d}"


def kept_name(method: str, step: int) -> str:
    """Return what the student of a step is called among the models of a run."""
    return f"{method}-step-{step}"
