"""One micro-batch of each bucket, three times, at the largest depth that fits and a smaller one."""

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
    """Measure at the depth of the item's name; `buckets` tries until one fits."""
    if check.item == "shallow":
        layers, changed = shallow(check), deepest(check)[1]
        _all(check, layers, changed, with_costs=True)
        return
    refused = []
    for layers, changed in fitting(check):
        problem = _try(check, layers, changed)
        if not problem:
            # What the plan says fits and does not is an error of the plan.
            assert not refused, f"out of memory although the plan says that they fit: {refused}"
            return
        settings = {"layers": layers, "changed": dict(changed)}
        refused.append(settings)
        check.fail("memory", f"planned to fit, and out of memory: {problem}", settings=settings)
        release(device_of(check))
    raise RuntimeError("no depth whose plan fits ran without running out of memory")


def _try(check: Check, layers: int, changed: Mapping[str, Any]) -> str:
    """Return why it ran out of memory, or nothing; nothing of the trainer is left either way."""
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
        # Last: a profiler's own memory and hooks must not count.
        for bucket in BUCKETS if with_costs else ():
            costs = top_costs(functools.partial(backward, trainer, batches[bucket]), trainer.device)
            check.line(f"{bucket}-costs", settings={"layers": layers}, measured={"kernels": costs})
