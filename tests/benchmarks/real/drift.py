"""Profile the drift that rescaling causes, and select the layers to distil."""

from pathlib import Path

import torch
from gpu.child import Check

from longred.cost.machine import peak_bytes
from longred.data.loader import read_rows
from longred.method.selection import MEASURES, explain_number, select_layers
from longred.models.load import load_model
from longred.profiling.drift import profile_drift
from real.inputs import Inputs


def measure(check: Check, folder: str) -> None:
    """Run both models in float32, as the profiling stage does; write scores and layers."""
    inputs = Inputs(Path(folder))
    values, original = inputs.values, inputs.place("original")
    rows_NT = read_rows(
        inputs.joined / "data",
        "short",
        split="held_out",
        num_tokens=values["similarity_tokens"],
    )
    drift = profile_drift(
        load_model(original, device=check.device_type),
        load_model(inputs.place("rescaled"), device=check.device_type, original=original),
        rows_NT,
        batch_rows=values["batch_rows"],
    )
    strategy = values["selection"]["strategy"]
    scores = drift.layer_scores(MEASURES[strategy].name)
    layers = select_layers(scores, **values["selection"])
    check.line(
        "layers",
        settings={"num_tokens": rows_NT.numel(), **values["selection"]},
        measured={
            "distill_layers": layers,
            "layer_scores": scores,
            "hidden_similarity": drift.hidden_similarity,
            "peak_bytes": peak_bytes(torch.device(check.device_type)),
        },
        note=explain_number(scores, layers, strategy=strategy),
    )
