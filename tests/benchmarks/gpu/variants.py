"""Measure the buckets with one setting changed, at the smaller depth, and compute the full step.

At full depth, a micro-batch of a variant takes the recipe's time plus, per layer, the difference
measured at the smaller depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gpu.buckets import BUCKETS
from gpu.child import Check, Skip
from gpu.sizes import deepest, scale_of, shallow
from gpu.step import write_step
from gpu.steps import at_depth, trainer_at, with_documents, write_batch
from longred.errors import PreflightError
from longred.training.step import MicroBatch

DOCUMENTS = {"long": 16, "short": 2, "original": 4}
"""Documents per row in the variant that masks documents."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings that override the recipe's, and the buckets that they affect."""

    changed: Mapping[str, Any]
    buckets: tuple[str, ...] = BUCKETS


VARIANTS = {
    "unfused": Variant({"fused": False}),
    "documents": Variant({"mask_documents": True}),
    "deterministic": Variant({"deterministic": True}),
    "recomputed": Variant({"uncheckpointed_tokens": 0}, ("short", "original")),
    "fp8": Variant({"fp8": True, "dtype": "bfloat16"}),
    "compile": Variant({"compile": True}),
}


def measure(check: Check, variant: str) -> None:
    """Measure a variant; skip it if a preflight check fails, e.g. for lack of a package."""
    chosen, layers = VARIANTS[variant], shallow(check)
    changed = {**deepest(check)[1], **chosen.changed}
    generator = torch.Generator().manual_seed(0)
    try:
        with trainer_at(check, layers, changed) as (trainer, batches):
            # Compiling for a CPU takes half a minute per bucket.
            wanted = ("original",) if check.tiny and trainer.job.compile else chosen.buckets
            for bucket in wanted:

                def before(batch: MicroBatch, bucket: str = bucket) -> MicroBatch:
                    if not trainer.job.mask_documents:
                        return batch
                    return with_documents(batch, DOCUMENTS[bucket], generator)

                write_batch(check, trainer, batches[bucket], layers, changed, before=before)
    except PreflightError as error:
        raise Skip(str(error)) from error
    _write_step(check, changed, layers)


def _write_step(check: Check, changed: Mapping[str, Any], layers: int) -> None:
    """Write the step at full depth; buckets that the variant does not run use recipe times."""
    found, whole = check.found, scale_of(check).layers
    micro = {}
    for bucket in BUCKETS:
        base = [found.get(f"{item}/{bucket}") for item in ("buckets", "shallow")]
        if None in base:
            check.skip(
                "step", f"needs the {bucket} bucket's micro-batch with the recipe's settings"
            )
            return
        points = {line["settings"]["layers"]: line["measured"]["seconds"] for line in base if line}
        micro[bucket] = at_depth(points, whole)
        own = found.get(f"{check.item}/{bucket}")
        if own is not None:
            micro[bucket] += (own["measured"]["seconds"] - points[layers]) * whole / layers
    if "update/on-host" not in found:
        check.skip("step", "needs the update's measurement")
        return
    write_step(check, "step", micro, changed)
