"""Measure the attention KL against its goals: seconds for all layers, and error against float64."""

import profiling
import torch

from gpu.child import Check
from gpu.sizes import device_of, scale_of
from longred.cost.calibrate import timed
from longred.profiling.attention_kl import attention_kl

LAYERS = {32768: 8, 131072: 2}
"""Number of layers to run, by length; all layers take the same time, so the total is scaled up."""
FLOAT32_TOKENS = 32768
"""Longest rows that are also measured in float32."""
GOALS = {"largest_relative_error": 1e-3, "largest_error_below_1e-3_nats": 1e-5}


@torch.no_grad()
def measure(check: Check) -> None:
    """Measure every length in bfloat16, and the shorter ones in float32."""
    num_layers, heads, key_heads, dim, lengths = scale_of(check).kl
    missed = []
    for dtype in (torch.bfloat16, torch.float32):
        for length in lengths:
            if dtype is torch.float32 and length > FLOAT32_TOKENS:
                continue
            name = f"{str(dtype).removeprefix('torch.')}-{length}"
            inputs = profiling.tensors(heads, key_heads, length, dim, check.device_type, dtype)
            first = timed(lambda inputs=inputs: attention_kl(*inputs), device_of(check))
            run = LAYERS.get(length, num_layers)
            found = profiling.layers_seconds(inputs, run)
            exact = profiling.exactness(inputs, length)
            seconds = found.pop("seconds_all_layers") * num_layers / run
            goal = profiling.GOAL_SECONDS.get(str(length))
            planned = {"seconds": goal} if goal and dtype is torch.bfloat16 else {}
            check.line(
                name,
                settings={"layers": num_layers, "layers_run": run, "dtype": str(dtype)},
                measured={"seconds": seconds, "first_seconds": first, **found, **exact},
                planned={**planned, **GOALS},
                note="planned values are the goals",
            )
            missed += [f"{name} {key}" for key, goal in GOALS.items() if exact[key] > goal]
    assert not missed, f"error above the goal: {', '.join(missed)}"
