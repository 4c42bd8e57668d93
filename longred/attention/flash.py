"""The FlashAttention packages, each called by its own signature; imported when one is chosen.

Shapes: B rows, T tokens, H query heads, h key heads, d head dimension, M = B x T.
Source of the signatures: flash-attn 2.8 and its `hopper` folder (FlashAttention-3), flash-attn-4
4.0.0b36.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longred.attention.sdpa import HALF, Rules


class Kernels(NamedTuple):
    """A package's two functions: for whole rows, and for documents laid end to end."""

    rows: Callable[..., Any]
    varlen: Callable[..., Any]


class Package(NamedTuple):
    """A FlashAttention package.

    Attributes:
        install: what to install.
        capabilities: major compute capabilities that it supports.
        modules: names that its module has had.
    """

    install: str
    capabilities: tuple[int, ...]
    modules: tuple[str, ...]


PACKAGES = {
    "flash_attention_2": Package("flash-attn", (8, 9, 10, 12), ("flash_attn",)),
    "flash_attention_3": Package(
        "flash-attn-3 (the folder hopper of flash-attention)",
        (9,),
        ("flash_attn_interface", "flash_attn_3.flash_attn_interface"),
    ),
    "flash_attention_4": Package("flash-attn-4", (9, 10, 11), ("flash_attn.cute",)),
}


@functools.cache
def load(name: str) -> Kernels:
    """Import a package's functions.

    Raises:
        ImportError: it is not installed or does not fit this torch.
    """
    problems = []
    for module_name in PACKAGES[name].modules:
        try:
            module = importlib.import_module(module_name)
            return Kernels(module.flash_attn_func, module.flash_attn_varlen_func)
        except (ImportError, AttributeError) as error:
            problems.append(str(error))
    raise ImportError("; ".join(problems))


def attend_flash(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules, *, name: str
) -> Tensor:
    """Attend with a FlashAttention package.

    Queries and keys are cast to the values' dtype: under autocast RoPE leaves them in fp32.

    Returns:
        The heads' outputs [B, T, H, d].

    Raises:
        ValueError: the values are in neither bf16 nor fp16.
    """
    if value_BhTd.dtype not in HALF:
        raise ValueError(f"{name} computes in bf16 or fp16, and the values are {value_BhTd.dtype}")
    dtype = value_BhTd.dtype
    tensors = [x.transpose(1, 2).to(dtype) for x in (query_BHTd, key_BhTd, value_BhTd)]
    options = _options(rules)
    if rules.documents is None:
        return _first(load(name).rows(*tensors, **options))
    ends, longest = rules.documents.cu_seqlens, rules.documents.max_length
    query_MHd, key_Mhd, value_Mhd = (x.flatten(0, 1) for x in tensors)
    output_MHd = _first(
        load(name).varlen(
            query_MHd,
            key_Mhd,
            value_Mhd,
            cu_seqlens_q=ends,
            cu_seqlens_k=ends,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            **options,
        )
    )
    return output_MHd.view(*tensors[0].shape[:2], *output_MHd.shape[1:])


def _options(rules: Rules) -> dict[str, Any]:
    """Return the options that differ from the defaults, which mean the same in all packages.

    Only version 2 has dropout. The packages do not read torch's switch for deterministic
    algorithms, so it is passed on.
    """
    options: dict[str, Any] = {"softmax_scale": rules.scale, "causal": True}
    if rules.window is not None:
        # Number of keys before and after the query's own.
        options["window_size"] = (rules.window - 1, 0)
    if rules.softcap is not None:
        options["softcap"] = rules.softcap
    if rules.dropout:
        options["dropout_p"] = rules.dropout
    if torch.are_deterministic_algorithms_enabled():
        options["deterministic"] = True
    return options


def _first(output: Any) -> Tensor:
    """Return the output; some versions return the log-sum-exp too."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
