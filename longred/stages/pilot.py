"""A pilot: the first steps of a training, measured against its plan, and whether to go on.

Its steps are those of the run that may follow: they are saved as any training saves them, and
`longred run` goes on from there. It makes no run record.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from longred import stages
from longred.config import RunConfig
from longred.cost.plan import TrainingPlan
from longred.cost.recipe import RecipePlan, choose_speeds, plan_recipe
from longred.cost.shape import shape_of
from longred.errors import ConfigError
from longred.models.load import load_config
from longred.stages.preflight import check_trainings
from longred.store.artifacts import Store
from longred.store.journal import JOURNAL_NAME, Journal
from longred.training.launch import PausedError

Tell = Callable[[str], None]

SLOWER = 1.5
"""Times the planned step time above which a pilot says no."""

FULL = 0.95
"""Share of the device's memory above which a pilot says no."""

WORSE = 1.02
"""Times the first steps' loss above which the last steps' says no."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the steps of a pilot were like.

    Attributes:
        first_step, last_step: the steps that are measured.
        step_seconds: median, without the first that warms up.
        tokens_per_second, mfu: of that.
        peak_memory_bytes: of the first process.
        losses: metric → its mean over the first and over the last quarter of the steps.
        num_spikes: steps that were told of as spikes.
    """

    first_step: int
    last_step: int
    step_seconds: float
    tokens_per_second: float
    mfu: float
    peak_memory_bytes: float
    losses: dict[str, tuple[float, float]]
    num_spikes: int


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a pilot found.

    Attributes:
        method: that was trained.
        planned: what its training was planned to take.
        measured: what its steps took.
        remaining_seconds: to the end of all trainings, at the measured speed.
        remaining_gpu_hours: with profiling and evaluation as planned.
        price: what they cost, where the price of a GPU hour is known.
        reasons: why not to go on; none for a go.
    """

    method: str
    planned: TrainingPlan
    measured: Measured
    remaining_seconds: float
    remaining_gpu_hours: float
    price: float | None
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        values = asdict(self)
        values["planned"] = self.planned.to_json()
        return {**values, "verdict": "no-go" if self.reasons else "go"}


def run_pilot(
    config: RunConfig,
    num_steps: int,
    *,
    store: Store,
    tell: Tell = lambda text: None,
    price_per_gpu_hour: float | None = None,
) -> Pilot:
    """Make what a training needs, take its next steps, and compare them with the plan.

    Args:
        config: the recipe; of windows on the way the first is trained.
        num_steps: to take; at least 2, since the first is not measured.
        store: where the run would work too.
        tell: called with words about what is done.
        price_per_gpu_hour: in any currency.

    Raises:
        ConfigError: too few steps, or the training is finished already.
        LongredError: as the stages do.
    """
    if num_steps < 2:
        raise ConfigError("--pilot: takes 2 steps or more, since the first is not measured")
    at_window = [*config.windows(), config][0]
    training = at_window.training
    method = training.recipe(training.method).merges or training.method
    base = stages.find_model(config.model, config.selection, store=store)
    check_trainings(config)
    shape = shape_of(load_config(base.folder))
    plan = plan_recipe(config, shape, choose_speeds(config, shape))
    tell(_planned_text(plan.trainings[0]))
    extended = stages.extend_model(at_window.extension, base, store=store)
    tell("data: preparing")
    data = stages.prepare_data(at_window.data, base, store=store)
    tell("profiling: measuring")
    profile = stages.profile_attention(at_window.profiling, base, extended, data, store=store)
    layers = stages.select_layers(at_window.selection, profile, store=store)
    try:
        stages.train_student(
            training,
            method,
            base,
            extended,
            data,
            layers,
            store=store,
            on_progress=lambda done, total, text: tell(f"step {done} of {total}: {text}"),
            stop_after=num_steps,
        )
    except PausedError as paused:
        journal = paused.work / JOURNAL_NAME
    else:
        raise ConfigError(
            f"--pilot: {method} is trained to its end already (training.num_steps is "
            f"{training.num_steps}); there is nothing to decide"
        )
    measured = read(journal, num_steps, plan.trainings[0].step_tokens)
    return judge(plan, measured, store.root, price_per_gpu_hour)


def read(journal: Path, num_steps: int, step_tokens: int) -> Measured:
    """Return what the last `num_steps` steps of a journal, of so many tokens, were like."""
    by_step: dict[int, dict[str, float]] = {}
    for line in Journal(journal).read():
        by_step.setdefault(line["step"], {})[line["key"]] = line["value"]
    steps = sorted(by_step)[-num_steps:]
    warm = [by_step[step] for step in steps[1:]]
    speed = median(metrics["train/tokens_per_second"] for metrics in warm)
    quarter = max(1, len(steps) // 4)
    keys = [key for key in by_step[steps[0]] if key == "train/loss" or key.endswith("_loss")]
    return Measured(
        first_step=steps[0],
        last_step=steps[-1],
        step_seconds=step_tokens / speed,
        tokens_per_second=speed,
        mfu=median(metrics["train/mfu"] for metrics in warm),
        peak_memory_bytes=max(metrics["train/peak_memory_bytes"] for metrics in warm),
        losses={
            key: (
                mean(by_step[step][key] for step in steps[:quarter]),
                mean(by_step[step][key] for step in steps[-quarter:]),
            )
            for key in keys
        },
        num_spikes=sum("train/loss_spike" in by_step[step] for step in steps),
    )


def judge(
    plan: RecipePlan, measured: Measured, folder: Path, price_per_gpu_hour: float | None = None
) -> Pilot:
    """Compare measured steps with the plan of a recipe, whose first training they are of.

    Args:
        plan: of the recipe.
        measured: of its first training.
        folder: on the disk that checkpoints are written to.
        price_per_gpu_hour: in any currency.
    """
    planned = plan.trainings[0]
    times = measured.step_seconds / planned.step_seconds
    own = (planned.tokens // planned.step_tokens - measured.last_step) * measured.step_seconds
    seconds = own + sum(other.seconds * times for other in plan.trainings[1:])
    others = plan.profiling["seconds"] + plan.evaluation["seconds"]
    gpu_hours = (seconds * planned.num_processes + others * times) / 3600
    return Pilot(
        method=planned.method,
        planned=planned,
        measured=measured,
        remaining_seconds=seconds,
        remaining_gpu_hours=gpu_hours,
        price=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        reasons=tuple(_reasons(planned, measured, shutil.disk_usage(folder).free)),
    )


def _reasons(planned: TrainingPlan, measured: Measured, free_bytes: float) -> Sequence[str]:
    found = []
    times = measured.step_seconds / planned.step_seconds
    if times > SLOWER:
        found.append(f"a step takes {times:.1f} times as long as planned")
    share = measured.peak_memory_bytes / planned.limit_bytes
    if share > FULL:
        found.append(f"{share:.0%} of the memory is in use; a longer document may not fit")
    first, last = measured.losses["train/loss"]
    if last > WORSE * first:
        found.append(f"the loss rose from {first:.4f} to {last:.4f}")
    if measured.num_spikes:
        found.append(f"the loss spiked in {measured.num_spikes} steps")
    needed = planned.disk["checkpoints"] + planned.disk["result"]
    if free_bytes < needed:
        found.append(
            f"checkpoints and result need {needed / 1e9:.1f} GB, {free_bytes / 1e9:.1f} are free"
        )
    return found


def _planned_text(planned: TrainingPlan) -> str:
    return (
        f"planned: {planned.step_seconds:,.2f} s a step, {planned.tokens_per_second:,.0f} "
        f"tokens/s, {planned.memory_bytes / 2**30:,.2f} GiB"
    )
