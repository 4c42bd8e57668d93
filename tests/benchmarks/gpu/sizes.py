"""Define what is measured on each device: shapes, settings, and how many layers fit."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import training

from gpu.child import Check, Skip
from longred.cost.calibrate import calibrate
from longred.cost.flops import Batches, batches
from longred.cost.machine import memory_of
from longred.cost.memory import batch_parts, memory_parts
from longred.cost.plan import TrainingPlan, plan_training, step_seconds
from longred.cost.shape import ModelShape, shape_of
from longred.cost.speeds import Speeds, key_of, known
from longred.method.job import TrainingJob

RECIPE = {
    "activation_checkpointing": "selective",
    "optimizer_offload": True,
    "uncheckpointed_tokens": 8192,
    "mlp_tile_tokens": 0,
}
"""Training settings of the recipe on one GPU."""
SAVING: Mapping[str, Any] = {"uncheckpointed_tokens": 0}
"""Settings that are added if the full depth does not fit otherwise."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """A model, one step of its recipe, and the depths at which it is measured.

    Attributes:
        model, length: parts of the results file's name.
        preset: a preset of `training.py`, with the recipe's rows.
        long_preset: the same with long rows only, of 128K tokens.
        layers: number of layers of the whole model.
        depths: numbers of layers to try; the largest that fits is measured.
        shallow: number of layers of the smaller depth, at which variants are measured; reduced to
            half of the largest depth that fits, if that is less.
        kl: layers, heads, key heads, head dimension and lengths of the attention KL.
        generation: preset, prompt lengths and number of new tokens of `generation.py`.
        attention: row lengths of the attention kernels.
    """

    model: str
    length: str
    preset: training.Preset
    long_preset: training.Preset
    layers: int
    depths: tuple[int, ...]
    shallow: int
    kl: tuple[int, int, int, int, tuple[int, ...]]
    generation: tuple[str, tuple[int, ...], int]
    attention: tuple[int, ...]


def _with(name: str, rows: Mapping[str, int], **settings: Any) -> training.Preset:
    preset = training.PRESETS[name]
    return dataclasses.replace(preset, rows=rows, settings={**preset.settings, **settings})


FULL = Scale(
    model="llama3-8b",
    length="32k",
    preset=_with("gpu-32k", {"long": 32, "short": 768, "original": 32}, **RECIPE),
    long_preset=_with("gpu-128k", {"long": 1}, **{**RECIPE, "mlp_tile_tokens": 8192}),
    layers=32,
    depths=(32, 24, 16, 12, 8, 4),
    shallow=8,
    kl=(32, 32, 8, 128, (32768, 131072)),
    generation=("gpu", (4096, 32768), 64),
    attention=(1024, 8192, 32768),
)
TINY = Scale(
    model="tiny",
    length="256",
    preset=_with(
        "tiny",
        {"long": 2, "short": 12, "original": 2},
        **{**RECIPE, "short_micro_batch_tokens": 128, "uncheckpointed_tokens": 128},
    ),
    long_preset=dataclasses.replace(
        _with("tiny", {"long": 1}, micro_batch_tokens=512),
        method="cpt",
        target_window=512,
    ),
    layers=4,
    depths=(2, 1),
    shallow=1,
    kl=(2, 4, 2, 32, (256, 512)),
    generation=("tiny", (128, 256), 4),
    attention=(64, 256),
)


def scale_of(check: Check) -> Scale:
    return TINY if check.tiny else FULL


def dtype_of(check: Check) -> torch.dtype:
    """Return the compute type: float32 with --tiny, since many CPUs have no fast bfloat16."""
    found: torch.dtype = getattr(torch, scale_of(check).preset.settings["dtype"])
    return found


def device_of(check: Check) -> torch.device:
    return torch.device(check.device_type)


@functools.cache
def model_shape(preset_name: str, layers: int) -> ModelShape:
    preset = {"tiny": TINY, "llama3-8b": FULL}[preset_name].preset
    return shape_of(training.model_config(preset, layers, theta=2e7))


def shape_at(check: Check, layers: int) -> ModelShape:
    return model_shape(scale_of(check).model, layers)


def job_at(
    check: Check,
    layers: int,
    settings: Mapping[str, Any],
    folder: Path = Path(),
    preset: training.Preset | None = None,
) -> TrainingJob:
    """Return the recipe's training job at a depth; `settings` override the recipe's."""
    preset = preset or scale_of(check).preset
    changed = dataclasses.replace(preset, settings={**preset.settings, **settings})
    return training.make_job(changed, layers, folder, 1)


def speeds_of(check: Check) -> Speeds:
    """Return the published rates of a known GPU, otherwise those that `products` measured here."""
    device = device_of(check)
    key = key_of(torch.cuda.get_device_name()) if device.type == "cuda" else None
    if key:
        return dataclasses.replace(known(key), memory_bytes=memory_of(device))
    return calibrated(check)


def calibrated(check: Check) -> Speeds:
    """Return the rates that `products` measured here; measure them if it has not run."""
    line = check.found.get("products/speeds")
    if line is None:
        return calibrate_here(check)
    values = dict(line["measured"])
    rates = values.pop("attention_flops")
    return Speeds(**values, attention_flops={int(n): tuple(pair) for n, pair in rates.items()})


def calibrate_here(check: Check) -> Speeds:
    scale = scale_of(check)
    return calibrate(
        shape_at(check, scale.depths[-1]),
        sorted(scale.preset.lengths.values()),
        tokens=8192,
        device=device_of(check),
        dtype=dtype_of(check),
    )


def plan_at(check: Check, layers: int, settings: Mapping[str, Any]) -> TrainingPlan:
    """Return the plan of the recipe's step at a depth."""
    job = job_at(check, layers, settings)
    return plan_training(
        shape_at(check, layers), job, scale_of(check).preset.lengths, speeds_of(check)
    )


def fitting(check: Check) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield depths and settings whose plan fits this device, in order of preference.

    Full depth with the recipe's settings, then with more recompute, then fewer layers.
    """
    depths = scale_of(check).depths
    tries: list[tuple[int, Mapping[str, Any]]] = [(depths[0], {}), (depths[0], SAVING)]
    for layers, settings in tries + [(layers, {}) for layers in depths[1:]]:
        if plan_at(check, layers, settings).fits:
            yield layers, settings


def deepest(check: Check) -> tuple[int, Mapping[str, Any]]:
    """Return the depth and settings that `buckets` used, or would use if it has not run."""
    line = check.found.get("buckets/long")
    if line is not None:
        return line["settings"]["layers"], line["settings"]["changed"]
    found = next(fitting(check), None)
    if found is None:
        raise Skip("according to the plan, no depth of the model fits this device")
    return found


def shallow(check: Check) -> int:
    """Return the number of layers of the second, smaller depth."""
    return max(1, min(scale_of(check).shallow, deepest(check)[0] // 2))


STANDING = ("weights", "frozen weights", "gradients", "teacher")
"""Memory parts present in every micro-batch; the optimizer's are absent, as no update is run."""


def planned_batch(
    check: Check, layers: int, job: TrainingJob, bucket: str, lengths: Mapping[str, int]
) -> dict[str, float]:
    """Return the planned seconds and peak memory, without the optimizer's, of one micro-batch."""
    shape, speeds = shape_at(check, layers), speeds_of(check)
    (work,) = (batch for batch in batches(job, lengths) if batch.bucket == bucket)
    one = _one(work)
    seconds = step_seconds(shape, job, [one], speeds) - step_seconds(shape, job, [], speeds)
    parts = memory_parts(shape, job, [one], device=speeds.kind)
    peak = sum(parts[part] for part in STANDING) + sum(batch_parts(shape, job, one).values())
    # On a GPU, the allocator's peak is measured, which excludes the process's own memory.
    peak += parts["process"] if speeds.kind == "cpu" else 0.0
    return {"seconds": seconds, "peak_bytes": peak}


def _one(work: Batches) -> Batches:
    rows = work.tokens * work.row_share // work.length
    return dataclasses.replace(work, rows=rows, count=1, step_tokens=work.tokens)
