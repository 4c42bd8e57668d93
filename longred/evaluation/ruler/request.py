"""What a task's generator is asked for."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from longred.evaluation.counting import Counter
from longred.evaluation.ruler.fitting import Steps
from longred.evaluation.ruler.questions import Questions

Parameters = Literal["full", "compact"]
Revision = Literal["paper", "current"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that samples of a task depend on, but for their random numbers.

    Attributes:
        task: the task's name.
        length: tokens of prompt and answer together.
        parameters: `full` for RULER's own, `compact` for windows below 4,096.
        revision: of RULER's wording.
        settings: the task's settings under these parameters.
        count: counts tokens of prompts.
        haystack: documents for tasks that hide needles in text.
        questions: for tasks that ask them.
    """

    task: str
    length: int
    parameters: Parameters
    revision: Revision
    settings: Any
    count: Counter
    haystack: Sequence[str]
    questions: Questions

    @property
    def room(self) -> int:
        """Tokens that a prompt may take."""
        return self.length - int(self.settings.budget)

    @property
    def slack(self) -> int:
        """Tokens of a prompt that may be left unused: 0.4 %, none in short windows."""
        return self.length // 256 if self.parameters == "full" else 0


Start = Callable[[random.Random, int], Steps]
"""Begins the sample of an index, from its own random numbers."""
