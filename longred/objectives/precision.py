"""Losses are taken in float32 at least, whatever the models compute in."""

import torch


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
