"""Weights sharded over processes with torch's FSDP2, and gathered where they are needed.

Models are sharded layer by layer: outside a layer's own forward and backward pass a process holds
only its rows of each weight. Gradients are summed over all processes, because losses are weighted
by their share of the whole step. Several replicas shard the weights inside each replica and sum
gradients over them (HSDP); as many replicas as processes is plain data parallelism.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from longred.method.layout import Layout

T = TypeVar("T")


class Meshes(NamedTuple):
    """The groups of processes.

    Attributes:
        weights: by replica and shard; None for a single process.
        sequence: neighbours that share a long row's tokens; None without sequence parallelism.
    """

    weights: DeviceMesh | None = None
    sequence: DeviceMesh | None = None


def make_meshes(layout: Layout, device: torch.device) -> Meshes:
    """Group the processes; called by all of them."""
    size = layout.num_processes
    if size == 1:
        return Meshes()
    shape = (layout.replicas, size // layout.replicas)
    weights = init_device_mesh(device.type, shape, mesh_dim_names=("replica", "shard"))
    sequence = None
    if layout.sequence_parallel > 1:
        shape = (size // layout.sequence_parallel, layout.sequence_parallel)
        sequence = init_device_mesh(device.type, shape, mesh_dim_names=("row", "sequence"))
    return Meshes(
        weights["shard"] if layout.replicas == 1 else weights,
        None if sequence is None else sequence["sequence"],
    )


def shard_student(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard the trained model; afterwards it must run inside `entered`.

    The root holds the final norm and the LM head, and the input embedding if the two are tied.
    Weights of decoder layers are gathered in the compute type, to which autocast would round them
    anyway: half the traffic and memory. Their gradient is rounded to that type once per
    micro-batch, then summed over processes and micro-batches in float32. Norms compute in float32
    and are gathered separately, unrounded.

    Args:
        model: sharded in place.
        mesh: the processes.
        dtype: compute type.
    """
    base: Any = model.base_model
    if dtype != torch.float32:
        for layer in base.layers:
            for norm in _norms(layer):
                fully_shard(norm, mesh=mesh, reshard_after_forward=False)
    _shard_layers(base, mesh, dtype)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if base.embed_tokens.weight is not head.weight:
        fully_shard(base.embed_tokens, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are weighted by their share of the whole step: gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.enter = lambda body: body()  # type: ignore[assignment]
    register_fsdp_forward_method(model, "enter")


def shard_teacher(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model that only computes hidden states, and its LM head if it has one.

    The head is never run: who needs its weight gathers it.
    """
    base: Any = model.base_model
    _shard_layers(base, mesh)
    fully_shard(base, mesh=mesh)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None:
        fully_shard(head, mesh=mesh)


def _shard_layers(base: Any, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for layer in base.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)


def _norms(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer whose own weights are all vectors."""
    own = ((module, list(module.parameters(recurse=False))) for module in layer.modules())
    return [module for module, weights in own if weights and all(w.ndim == 1 for w in weights)]


def entered(model: PreTrainedModel, body: Callable[[], T]) -> T:
    """Call a function that runs the model; with sharded weights, through FSDP's hooks.

    FSDP must see one entry point of the root module. It cannot be the model's forward, which would
    compute logits.
    """
    enter: Callable[[Callable[[], T]], T] = getattr(model, "enter", None) or (lambda run: run())
    return enter(body)


class Rows(NamedTuple):
    """The rows of a whole tensor that a process holds.

    Attributes:
        start: index of the first row.
        shape: of the whole tensor.
    """

    start: int
    shape: tuple[int, ...]


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return a tensor sharded like another one, with the given rows in this process."""
    like: Any = tensor
    layout: dict[str, Any] = {"shape": tensor.shape, "stride": tensor.stride()}
    sharded: Tensor = DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, **layout
    )
    return sharded


def rows_of(tensor: Tensor) -> Rows:
    """Return which rows of a tensor this process holds: all if it is not sharded."""
    start = 0
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        dimension = mesh.ndim - 1
        # Like `torch.chunk`: equal parts, the last ones smaller or empty.
        size = -(-tensor.shape[0] // mesh.size(dimension))
        start = min(size * mesh.get_local_rank(dimension), tensor.shape[0])
    return Rows(start, tuple(tensor.shape))


def row_range(tensor: Tensor) -> tuple[int, int]:
    """Return the first row that this process holds and the row after its last one."""
    start = rows_of(tensor).start
    return start, start + len(local(tensor))


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; called by all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
