"""Measure plan rates, GEMMs of the model's sizes, and copies on the device and to/from the host."""

import dataclasses

import torch

from gpu.child import Check
from gpu.sizes import calibrate_here, device_of, dtype_of, scale_of, shape_at, speeds_of
from longred.cost.calibrate import call_seconds, product_seconds
from longred.cost.memory import CHUNK_TOKENS
from longred.cost.plan import HOST_BANDWIDTH


def measure(check: Check) -> None:
    """Measure the plan's rates, then each GEMM size once (forward, both gradients), then copies."""
    device, shape = device_of(check), shape_at(check, scale_of(check).depths[-1])
    rates = calibrate_here(check)
    values = dataclasses.asdict(rates)
    values["attention_flops"] = {str(n): list(r) for n, r in rates.attention_flops.items()}
    check.line("speeds", settings={"dtype": str(dtype_of(check))}, measured=values)
    planned = speeds_of(check)
    rows = 256 if check.tiny else 8192
    sizes = {(linear.inputs, linear.outputs): rows for linear in shape.linears.values()}
    sizes[shape.hidden_size, shape.vocab_size] = min(rows, CHUNK_TOKENS)
    for (inputs, outputs), rows in sizes.items():
        seconds = product_seconds(rows, inputs, outputs, device, dtype_of(check))
        is_head = outputs == shape.vocab_size
        check.line(
            f"{inputs}x{outputs}",
            settings={"rows": rows, "dtype": str(dtype_of(check))},
            measured={
                "seconds": seconds,
                "flops_per_second": 6.0 * rows * inputs * outputs / seconds,
            },
            planned={"flops_per_second": planned.head_flops if is_head else planned.matmul_flops},
        )
    _copies(check, device, planned.bandwidth)


def _copies(check: Check, device: torch.device, bandwidth: float) -> None:
    size = 2**24 if check.tiny else 2**31
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = call_seconds(lambda: target.copy_(source), device)
    check.line(
        "copy",
        settings={"bytes": size},
        measured={"seconds": seconds, "bytes_per_second": 2 * size / seconds},
        planned={"bytes_per_second": bandwidth},
    )
    size //= 4
    on_gpu = device.type == "cuda"
    host = torch.ones(size, dtype=torch.uint8, pin_memory=on_gpu)
    for name, (to, origin) in {
        "to-device": (target[:size], host),
        "to-host": (host, target[:size]),
    }.items():
        seconds = call_seconds(lambda to=to, origin=origin: to.copy_(origin), device)
        check.line(
            name,
            settings={"bytes": size, "pinned": on_gpu},
            measured={"seconds": seconds, "bytes_per_second": size / seconds},
            planned={"bytes_per_second": HOST_BANDWIDTH} if on_gpu else {},
        )
