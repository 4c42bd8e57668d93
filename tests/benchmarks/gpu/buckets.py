"""Time a micro-batch per bucket three times, at the largest depth that fits and a smaller one."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from training import top_costs

from gpu.child import Check
from gpu.sizes import deepest, device_of, fitting, shallow
from gpu.steps import backward, release, trainer_at, write_batch

BUCKETS = ("long", "short", "original")


def measure(check: Check) -> None:
    """Measure at the smaller depth (item `shallow`) or at the first depth that fits (`buckets`)."""
    if check.item == "shallow":
        layers, changed = shallow(check), deepest(check)[1]
        _all(check, layers, changed, with_costs=True)
        return
    refused = []
    for layers, changed in fitting(check):
        problem = _try(check, layers, changed)
        if not problem:
            # Running out of memory where the plan predicts a fit is an error in the plan.
            assert not refused, f"out of memory although the plan predicted a fit: {refused}"
            return
        settings = {"layers": layers, "changed": dict(changed)}
        refused.append(settings)
        check.fail("memory", f"out of memory although planned to fit: {problem}", settings=settings)
        release(device_of(check))
    raise RuntimeError("every depth that was planned to fit ran out of memory")


def _try(check: Check, layers: int, changed: Mapping[str, Any]) -> str:
    """Measure; return the out-of-memory message or an empty string. The trainer is always freed."""
    try:
        _all(check, layers, changed)
    except torch.OutOfMemoryError as error:
        return str(error)[:300]
    return ""


def _all(
    check: Check, layers: int, changed: Mapping[str, Any], *, with_costs: bool = False
) -> None:
    with trainer_at(check, layers, changed) as (trainer, batches):
        for bucket in BUCKETS:
            write_batch(check, trainer, batches[bucket], layers, changed)
        # Profile last, so that the profiler's memory and hooks do not affect the measurements.
        for bucket in BUCKETS if with_costs else ():
            costs = top_costs(functools.partial(backward, trainer, batches[bucket]), trainer.device)
            check.line(f"{bucket}-costs", settings={"layers": layers}, measured={"kernels": costs})
