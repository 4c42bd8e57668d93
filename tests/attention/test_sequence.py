"""Packed rows split over processes, against the formula on whole rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from test_kernels import RULES, dense, draw, packed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from longred.attention.function import attend

LENGTH = 40
NAMES = ("causal", "window", "softcap-window")


def attend_to_own_tokens(rank: int, folder: str, num_processes: int) -> None:
    """Attend with this process's tokens; save its outputs and its tokens' gradients."""
    store = dist.FileStore(f"{folder}/store", num_processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes)
    mesh = init_device_mesh("cpu", (num_processes,))
    own = slice(rank * LENGTH // num_processes, (rank + 1) * LENGTH // num_processes)
    for name in NAMES:
        rules = RULES[name]
        tensors = [x[:, :, own].detach().requires_grad_() for x in draw(torch.float64)]
        output, _ = attend(
            nn.Module(),
            *tensors,
            None,
            scaling=rules.scale,
            sliding_window=rules.window,
            softcap=rules.softcap,
            document_ids_BT=packed(LENGTH),
            sequence=mesh,
        )
        weight = loss_weight()[:, own]
        gradients = torch.autograd.grad((output * weight).sum(), tensors)
        torch.save([output.detach(), *gradients], f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


def loss_weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, LENGTH, 4, 16, generator=generator, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_shared_rows_of_documents_are_the_formula(num_processes: int, tmp_path: Path) -> None:
    """Four processes share two key heads: each is repeated."""
    multiprocessing.spawn(
        attend_to_own_tokens, (str(tmp_path), num_processes), nprocs=num_processes
    )
    for name in NAMES:
        tensors = draw(torch.float64)
        # Documents end inside one process's tokens; one document spans both processes.
        expected = dense(*tensors, RULES[name], packed(LENGTH))
        gradients = torch.autograd.grad((expected * loss_weight()).sum(), tensors)
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(num_processes)]
        output, *found = (
            torch.cat(shares, dim=1 if place == 0 else 2)
            for place, shares in enumerate(zip(*parts, strict=True))
        )
        for ours, theirs in zip((output, *found), (expected, *gradients), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
