"""Compute the recipe's step from measured micro-batches and updates; nothing is run here."""

from collections.abc import Mapping
from typing import Any

from gpu.buckets import BUCKETS
from gpu.child import Check
from gpu.sizes import calibrated, job_at, plan_at, scale_of, shape_at
from gpu.steps import at_depth, whole_step
from longred.cost.flops import batches
from longred.cost.plan import plan_training


def measure(check: Check) -> None:
    """Write the recipe's step at full depth, with optimizer state on the host and on the GPU."""
    scale, changed = scale_of(check), _line(check, "buckets/long")["settings"]["changed"]
    micro, peak = {}, {}
    for bucket in BUCKETS:
        lines = [_line(check, f"{item}/{bucket}") for item in ("buckets", "shallow")]
        for key, into in (("seconds", micro), ("peak_bytes", peak)):
            points = {line["settings"]["layers"]: line["measured"][key] for line in lines}
            into[bucket] = at_depth(points, scale.layers)
    for name, offload in (("on-host", True), ("on-gpu", False)):
        settings = {**changed, "optimizer_offload": offload}
        write_step(check, name, micro, settings, peak_bytes=max(peak.values()))


def write_step(
    check: Check,
    name: str,
    micro: Mapping[str, float],
    settings: Mapping[str, Any],
    **measured: float,
) -> None:
    """Write a step at full depth.

    Args:
        check: writes the line.
        name: name of the line.
        micro: seconds per micro-batch of each bucket at full depth.
        settings: training settings that override the recipe's.
        measured: additional figures.
    """
    scale = scale_of(check)
    job = job_at(check, scale.layers, settings)
    lengths = scale.preset.lengths
    counts = {batch.bucket: batch.count for batch in batches(job, lengths)}
    updated = update_at(check, scale.layers, on_host=job.optimizer_offload)
    seconds = whole_step(micro, counts, updated)
    if seconds <= 0:
        check.skip(name, f"extrapolation over depth gives {seconds:.2g} s: the times are too noisy")
        return
    plan = plan_at(check, scale.layers, settings)
    here = plan_training(shape_at(check, scale.layers), job, lengths, calibrated(check))
    terms = " + ".join(f"{counts[b]} x {micro[b]:.3g} ({b})" for b in counts)
    check.line(
        name,
        settings={"layers": scale.layers, "changed": dict(settings)},
        measured={
            "seconds": seconds,
            "tokens_per_second": plan.step_tokens / seconds,
            "mfu": plan.flops / seconds / calibrated(check).peak_flops,
            **measured,
        },
        planned={"seconds": plan.step_seconds, "tokens_per_second": plan.tokens_per_second},
        planned_by_rates_measured_here={"seconds": here.step_seconds},
        note=f"{terms} + {updated:.3g} (update) s; {extrapolation(check)}",
    )


def update_at(check: Check, layers: int, *, on_host: bool) -> float:
    """Return the update's time at a depth, scaled by the number of weights."""
    line = _line(check, "update/on-host" if on_host else "update/on-gpu")
    share = shape_at(check, layers).num_parameters / line["num_parameters"]
    return float(line["measured"]["seconds"] * share)


def extrapolation(check: Check) -> str:
    """Return a text that says how the full-depth figures were computed from the measurements."""
    deep, few = (_line(check, f"{item}/long")["settings"]["layers"] for item in DEPTHS)
    layers = scale_of(check).layers
    small = _line(check, "update/on-host")["settings"]["layers"]
    how = "measured at full depth"
    if deep < layers:
        how = f"{layers} layers, extrapolated linearly from {few} and {deep}"
    return f"micro-batches: {how}; update: from {small} layers, by the number of weights"


DEPTHS = ("buckets", "shallow")


def _line(check: Check, name: str) -> Mapping[str, Any]:
    line = check.found.get(name)
    if line is None:
        raise RuntimeError(f"needs the measurement {name}, which is missing")
    return line
