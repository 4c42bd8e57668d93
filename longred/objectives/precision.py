"""Compute types: losses are computed in fp32 at least, whatever the models compute in."""

import torch
from torch import Tensor


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """Return the autocast dtype of the tensor's device; None if autocast is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def product(left_MK: Tensor, right_KN: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply two matrices into a dtype that may be wider than theirs.

    On a GPU the kernel accumulates bfloat16 or float16 products in float32 and stores those sums
    unrounded. On other devices the result is first rounded to the input dtype, as under autocast.
    """
    is_half = left_MK.dtype in (torch.bfloat16, torch.float16)
    if left_MK.is_cuda and is_half and dtype == torch.float32:
        return torch.mm(left_MK, right_KN, out_dtype=dtype)
    return (left_MK @ right_KN).to(dtype)
