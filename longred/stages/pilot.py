"""A pilot: measure the first steps of a training against its plan, and decide whether to continue.

The steps are those of the run that may follow: they are saved like any others, and `longred run`
resumes from them. A pilot writes no run record.
"""

import shutil
from collections.abc import Callable
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
from longred.progress import size
from longred.stages.preflight import Preflight, refuse_all
from longred.store.artifacts import Store
from longred.store.journal import JOURNAL_NAME, Journal
from longred.training.launch import PausedError

BUILT = ("data", "extension", "profiling", "selection", "training")
"""Stages that a pilot builds or begins."""

MAX_SLOWDOWN = 1.5
"""Measured over planned step time above which the verdict is no-go."""

MAX_MEMORY_SHARE = 0.95
"""Share of the device's memory above which the verdict is no-go."""

MAX_LOSS_RATIO = 1.02
"""Loss of the last over that of the first steps above which the verdict is no-go."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of the steps of a pilot.

    Attributes:
        first_step, last_step: the measured steps.
        step_seconds: median, without the first step, which warms up.
        tokens_per_second, mfu: medians of the same steps.
        peak_memory_bytes: of the first process.
        losses: metric → its mean over the first and over the last quarter of the steps.
        num_spikes: steps that were reported as loss spikes.
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
    """Result of a pilot.

    Attributes:
        method: the trained method.
        planned: the plan of its training.
        measured: the measured steps.
        remaining_seconds: time to the end of all trainings at the measured speed.
        remaining_gpu_hours: of trainings, profiling and evaluation.
        on_gpu: whether they are hours of GPUs.
        price: of those hours, if the price of a GPU hour is known.
        reasons: why not to continue; empty for a go.
    """

    method: str
    planned: TrainingPlan
    measured: Measured
    remaining_seconds: float
    remaining_gpu_hours: float
    on_gpu: bool
    price: float | None
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        verdict = "no-go" if self.reasons else "go"
        return {**asdict(self), "planned": self.planned.to_json(), "verdict": verdict}


def run_pilot(
    config: RunConfig,
    num_steps: int,
    *,
    store: Store,
    tell: Callable[[str], None],
    price_per_gpu_hour: float | None,
) -> Pilot:
    """Build the inputs of a training, take its next steps, and compare them with the plan.

    Args:
        config: settings of the run; with intermediate windows the first one is trained.
        num_steps: number of steps; at least 2, because the first is not measured.
        store: the store of the run.
        tell: called with progress messages.
        price_per_gpu_hour: in any currency.

    Raises:
        ConfigError: too few steps, or the training is already finished.
        LongredError: as raised by the stages.
    """
    if num_steps < 2:
        raise ConfigError("--pilot: takes 2 steps or more, since the first is not measured")
    at_window = [*config.windows(), config][0]
    training = at_window.training
    method = training.recipe(training.method).merges or training.method
    base = stages.find_model(config.model, config.selection, store=store)
    for warning in refuse_all(Preflight(config, BUILT, reads_text=False)):
        tell(warning)
    shape = shape_of(load_config(base.folder))
    plan = plan_recipe(config, shape, choose_speeds(config, shape))
    planned = plan.trainings[0]
    tell(
        f"planned: {planned.step_seconds:,.2f} s a step, {planned.tokens_per_second:,.0f} "
        f"tokens/s, {size(planned.memory_bytes)}"
    )
    tell("data: preparing")
    data = stages.prepare_data(at_window.data, base, store=store)
    extended = stages.extend_model(at_window.extension, base, data=data, store=store)
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
        measured = read(paused.work / JOURNAL_NAME, num_steps, planned.step_tokens)
        return judge(plan, measured, store.root, price_per_gpu_hour)
    raise ConfigError(
        f"--pilot: {method} is already trained to its end (training.num_steps is "
        f"{training.num_steps}); there is nothing to decide"
    )


def read(journal: Path, num_steps: int, step_tokens: int) -> Measured:
    """Read the last `num_steps` steps, of `step_tokens` tokens each, from a journal."""
    by_step: dict[int, dict[str, float]] = {}
    for line in Journal(journal).read():
        by_step.setdefault(line["step"], {})[line["key"]] = line["value"]
    steps = sorted(by_step)[-num_steps:]
    warm = [by_step[step] for step in steps[1:]]
    speed = median(metrics["train/tokens_per_second"] for metrics in warm)
    quarter = max(1, len(steps) // 4)
    losses = {}
    for key in by_step[steps[0]]:
        if key == "train/loss" or key.endswith("_loss"):
            first = mean(by_step[step][key] for step in steps[:quarter])
            losses[key] = (first, mean(by_step[step][key] for step in steps[-quarter:]))
    return Measured(
        first_step=steps[0],
        last_step=steps[-1],
        step_seconds=step_tokens / speed,
        tokens_per_second=speed,
        mfu=median(metrics["train/mfu"] for metrics in warm),
        peak_memory_bytes=max(metrics["train/peak_memory_bytes"] for metrics in warm),
        losses=losses,
        num_spikes=sum("train/loss_spike" in by_step[step] for step in steps),
    )


def judge(
    plan: RecipePlan, measured: Measured, folder: Path, price_per_gpu_hour: float | None = None
) -> Pilot:
    """Compare measured steps with the plan of a recipe's first training.

    Args:
        plan: the plan of the recipe.
        measured: steps of its first training.
        folder: a folder on the disk of the checkpoints.
        price_per_gpu_hour: in any currency.
    """
    planned = plan.trainings[0]
    slowdown = measured.step_seconds / planned.step_seconds
    own = (planned.tokens // planned.step_tokens - measured.last_step) * measured.step_seconds
    seconds = own + sum(other.seconds * slowdown for other in plan.trainings[1:])
    others = plan.profiling["seconds"] + plan.evaluation["seconds"]
    gpu_hours = (seconds * planned.num_processes + others * slowdown) / 3600
    memory_share = measured.peak_memory_bytes / planned.limit_bytes
    first, last = measured.losses["train/loss"]
    needed = planned.disk["checkpoints"] + planned.disk["result"]
    free = shutil.disk_usage(folder).free
    reasons = []
    if slowdown > MAX_SLOWDOWN:
        reasons.append(f"a step takes {slowdown:.1f} times as long as planned")
    if memory_share > MAX_MEMORY_SHARE:
        reasons.append(f"{memory_share:.0%} of the memory is in use; a longer document may not fit")
    if last > MAX_LOSS_RATIO * first:
        reasons.append(f"the loss rose from {first:.4f} to {last:.4f}")
    if measured.num_spikes:
        reasons.append(f"the loss spiked in {measured.num_spikes} steps")
    if free < needed:
        reasons.append(f"checkpoints and result need {size(needed)}, {size(free)} are free")
    return Pilot(
        method=planned.method,
        planned=planned,
        measured=measured,
        remaining_seconds=seconds,
        remaining_gpu_hours=gpu_hours,
        on_gpu=plan.speeds.kind == "cuda",
        price=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        reasons=tuple(reasons),
    )
