"""The teacher: the original model, run as the student is run."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from longred.models import load as models
from longred.models.folder import weight_files
from longred.training.layers.fused import fuse
from longred.training.own_rows import OwnRows
from longred.training.sharding import shard_teacher

Teacher = Callable[[], AbstractContextManager[PreTrainedModel]]
"""Opens the original model for a forward pass."""


def load_teacher(
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    backend: str,
    is_fused: bool = True,
    mesh: DeviceMesh | None = None,
) -> Teacher:
    """Load the original model, frozen, to be run under the student's autocast.

    Under autocast a linear layer rounds its float32 weight to bfloat16 and everything else is left
    in float32. A teacher that keeps linear layers in bfloat16 and the rest in float32 therefore
    computes, bit for bit, what an unchanged student computes, in little more than half the memory.
    It is asked for hidden states only: its output embedding is dropped.

    Args:
        folder: the original model's.
        dtype: the compute type, `bfloat16` or `float32`.
        device: where it is run.
        backend: of its attention; the student's.
        is_fused: whether it computes norms, RoPE and MLPs as `longred.training.layers.fused` does.
        mesh: the processes that its weights are divided over, each of which reads its own rows; or
            None.

    Raises:
        PreflightError: a file is missing or damaged.
        MismatchError: the weights do not fit the configuration.
    """
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "device": device,
        "backend": backend,
        "compute_dtype": getattr(torch, dtype),
    }
    if mesh is None:
        model = models.load_model(folder, **settings)
    else:
        model = models.build_model(folder, **settings)
        rows = OwnRows(model, weight_files(folder))
    model.requires_grad_(False)
    if dtype == "bfloat16":
        round_linear_layers(model)
    if is_fused:
        fuse(model)
    model.lm_head = None
    if mesh is not None:
        shard_teacher(model, mesh)
        rows.read_into(model, device)

    @contextlib.contextmanager
    def opened() -> Iterator[PreTrainedModel]:
        yield model

    return opened


def round_linear_layers(model: PreTrainedModel) -> None:
    """Keep linear layers in bfloat16, but for the output embedding.

    That may be tied to the input's, which is no linear layer and is left in float32 by autocast.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to(torch.bfloat16)
