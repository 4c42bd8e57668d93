"""The items of a real model, most valuable first, and how many steps its trainings take."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpu.items import Item
from gpu.lines import Line, latest

from real import estimates
from real.inputs import METHODS, MODELS, Inputs

TINY_SECONDS = 12.0
FIRST = METHODS[0]
PREFIXES = {
    "profile": "profile",
    "train": "train-",
    "quick": "",
    "ruler": "ruler-",
    "more": "more-",
}
"""Kind of item -> what its name begins with: `quick` measures loss, short sets and similarity,
`ruler` the first samples of every RULER task, `more` the remaining ones."""


class Work(NamedTuple):
    """What an item does, and with which model."""

    kind: str
    model: str = ""

    @property
    def name(self) -> str:
        """The item's name."""
        return PREFIXES[self.kind] + self.model


ORDER = (
    Work("profile"),
    Work("quick", "original"),
    Work("quick", "rescaled"),
    Work("train", FIRST),
    Work("quick", FIRST),
    *(Work("ruler", model) for model in MODELS[:3]),
    *(Work(kind, method) for method in METHODS[1:] for kind in ("train", "quick", "ruler")),
    *(Work("more", model) for model in MODELS),
)


def step_seconds(inputs: Inputs) -> dict[str, float]:
    """Return the estimated seconds of a step of each training."""
    jobs, lengths = inputs.jobs(), inputs.row_lengths
    speeds = estimates.slow_h200()
    return {
        method: estimates.training_step(inputs.shape, job, lengths, speeds)
        for method, job in jobs.items()
    }


def other_seconds(inputs: Inputs, work: Work) -> float:
    """Return the estimated seconds of an item that trains nothing."""
    shape, values = inputs.shape, inputs.values
    if work.kind == "profile":
        return estimates.PROFILE
    if work.kind == "quick":
        return estimates.quick(shape, values, is_compared=work.model != "original")
    first = values["first_samples"]
    count = first if work.kind == "ruler" else values["samples"] - first
    return estimates.answers(shape, values, count)


def fitting_steps(inputs: Inputs, deadline: float) -> int:
    """Return how many steps fit if everything but the items `more` is to fit the deadline."""
    steps = step_seconds(inputs)
    others = sum(
        estimates.TRAINING_START if work.kind == "train" else other_seconds(inputs, work)
        for work in ORDER
        if work.kind != "more"
    )
    left = deadline - estimates.RESERVE - others
    most = int(inputs.values["num_steps"])
    return min(most, max(1, int(left / sum(steps.values()))))


def items(
    inputs: Inputs, lines: Sequence[Line], *, deadline: float, num_steps: int = 0
) -> Iterator[Item]:
    """Yield the items; the trainings after the first take as many steps as it took.

    Args:
        inputs: joined inputs.
        lines: lines of the results, which grow while the items run.
        deadline: seconds for everything.
        num_steps: of each training; 0 for as many as fit. The first training then takes the time
            that `fitting_steps` steps are estimated to take, and does more in it if it can.
    """
    steps, most = step_seconds(inputs), int(inputs.values["num_steps"])
    fitting = num_steps or fitting_steps(inputs, deadline)
    for work in ORDER:
        options: dict[str, Any] = {"folder": str(inputs.folder)}
        if work.kind == "train":
            line = latest(lines).get(f"train-{FIRST}/steps")
            options |= {"method": work.model, "num_steps": fitting, "budget_seconds": 0.0}
            seconds = fitting * steps[work.model]
            if work.model == FIRST and not num_steps:
                options |= {"num_steps": most, "budget_seconds": seconds}
            elif work.model != FIRST and line is not None:
                options["num_steps"] = int(line["measured"]["num_steps"])
                rate = float(line["measured"]["seconds"]) / steps[FIRST]
                seconds = options["num_steps"] * steps[work.model] * rate
            seconds += estimates.TRAINING_START
        else:
            seconds = other_seconds(inputs, work)
            if work.kind != "profile":
                options |= {"model": work.model, "kind": work.kind}
        module = {"train": "real.training", "profile": "real.drift"}.get(work.kind, "real.models")
        yield Item(
            name=work.name,
            module=module,
            seconds=round(seconds, 1),
            tiny_seconds=TINY_SECONDS,
            options=options,
        )
