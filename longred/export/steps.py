"""Which step's student is exported: the last one, one that was kept, or the best by a measure."""

from pathlib import Path

from longred.errors import ConfigError
from longred.method.kept import FOLDER, kept_place
from longred.runs.record import RunRecord
from longred.store.artifacts import Artifact, read_json
from longred.store.journal import JOURNAL_NAME, Journal

LAST, BEST = "last", "best"
MEASURES = {
    "short_average": True,
    "retention": True,
    "similarity": True,
    "attention_kl": False,
    "ruler": True,
}
"""What the best can be chosen by → whether more is better."""


def find_step(
    run: RunRecord, method: str, trained: Artifact, *, step: str = LAST, by: str = "short_average"
) -> int | None:
    """Return the step of the student that is meant; None stands for the training's result.

    Args:
        run: the run.
        method: how the student was trained.
        trained: its training's artifact.
        step: a number, `last`, or `best`.
        by: for `best`, a key of `MEASURES`, as the run's report has measured it.

    Raises:
        ConfigError: nothing was kept at the step, the measure is unknown or was not taken.
    """
    if step == LAST:
        return None
    last = int(read_json(trained.folder / "training.json")["num_steps"])
    if step == BEST:
        wanted = _best(run, method, by)
    elif step.isdigit():
        wanted = int(step)
    else:
        raise ConfigError(f"--step: {step!r} is not a step, `{BEST}` or `{LAST}`")
    if wanted == last:
        return None
    if not (trained.folder / kept_place(wanted)).is_dir():
        kept = sorted(path.name for path in (trained.folder / FOLDER).glob("step-*"))
        steps = ", ".join(str(int(name.removeprefix("step-"))) for name in kept)
        have = f"kept are {steps} and the last, {last}" if kept else f"only the last, {last}, is"
        raise ConfigError(
            f"--step: the student of {method} at step {wanted} was not kept; {have}. "
            "training.keep_steps names what a new training keeps"
        )
    return wanted


def _best(run: RunRecord, method: str, by: str) -> int:
    if by not in MEASURES:
        raise ConfigError(f"--by: {by!r} is not one of {', '.join(MEASURES)}")
    report = run.last_attempts().get("report")
    values: dict[int, float] = {}
    if report is not None and report.path:
        for line in Journal(Path(report.path) / JOURNAL_NAME).read():
            # Step 0 is the rescaled model, which nobody has trained.
            if line["key"] == f"{method}/by_step/{by}" and line["step"] > 0:
                values[int(line["step"])] = float(line["value"])
    if not values:
        raise ConfigError(
            f"--step {BEST}: run {run.id} has not measured {by} over the steps of {method}; run it "
            "with training.keep_steps and evaluation.kept=true up to the report"
        )
    sign = 1 if MEASURES[by] else -1
    # Of equals the earlier: it has seen less.
    return max(values, key=lambda step: (sign * values[step], -step))
