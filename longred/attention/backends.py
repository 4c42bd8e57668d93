"""The table of attention backends, and the choice of one for a model on a device."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from longred.attention import flash
from longred.attention.heads import head_dim
from longred.attention.kernels import capability_of, loaded_cudnn
from longred.attention.sdpa import HALF, Rules, attend_sdpa
from longred.errors import ConfigError, PreflightError

log = logging.getLogger("longred.attention")


class Needs(NamedTuple):
    """Requirements of a model's attention.

    Attributes:
        device: type of the device.
        capability: compute capability of the GPU; (0, 0) for other devices.
        dtype: compute dtype of attention.
        head_dim: head dimension of queries and keys.
        softcap: whether logits are soft-capped.
        dropout: whether attention has dropout.
    """

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    softcap: bool
    dropout: bool


Attend = Callable[[Tensor, Tensor, Tensor, Rules], Tensor]


class Backend(NamedTuple):
    """One implementation of attention.

    Attributes:
        name: its key in `BACKENDS`.
        attend: computes output_BTHd from query_BHTd, key_BhTd, value_BhTd and the rules.
        problem: returns why it cannot serve a model, or None.
    """

    name: str
    attend: Attend
    problem: Callable[[Needs], str | None]


def needs_of(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> Needs:
    """Return the requirements of a model's attention on a device."""
    softcap = getattr(config, "attn_logit_softcapping", None) is not None
    dropout = bool(getattr(config, "attention_dropout", 0.0))
    return Needs(device.type, capability_of(device), dtype, head_dim(config), softcap, dropout)


def choose_backend(name: str, needs: Needs) -> Backend:
    """Return the named backend, or for `auto` the fastest one that can serve; log it once.

    In float32 every name means sdpa: no FlashAttention kernel computes in it.

    Raises:
        ConfigError: the name is unknown.
        PreflightError: the backend is not installed or cannot serve the model.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(
            f"attention.backend: {name!r} is not one of {', '.join(('auto', *BACKENDS))}"
        )
    backend, detail = BACKENDS["sdpa"], ""
    if needs.dtype not in HALF:
        detail = f"; {name} computes in bf16 or fp16" if name not in ("auto", "sdpa") else ""
    elif name == "auto":
        order = SOFTCAPPED if needs.softcap else AUTO.get(needs.capability[0], ("sdpa",))
        backend = next(BACKENDS[n] for n in order if BACKENDS[n].problem(needs) is None)
    else:
        backend = BACKENDS[name]
        problem = backend.problem(needs)
        if problem is not None:
            raise PreflightError(f"attention.backend: {name} {problem}; use auto or sdpa")
    if backend.name == "sdpa" and needs.softcap:
        detail = f"; logits are soft-capped, so by the exact path{detail}"
    elif backend.name == "sdpa" and needs.device == "cuda" and (cudnn := loaded_cudnn()):
        foreign = "" if cudnn["cudnn_origin"] == "torch" else ", not the one that came with torch"
        detail = f" (cuDNN {cudnn['cudnn_version']}, {cudnn['cudnn_path']}{foreign}){detail}"
    _log_once(f"attention: {backend.name}{detail}")
    return backend


@functools.cache
def _log_once(text: str) -> None:
    log.info(text)


def _flash_problem(name: str, needs: Needs) -> str | None:
    if needs.device != "cuda":
        return f"needs a CUDA GPU, and the model is on {needs.device}"
    package = flash.PACKAGES[name]
    if needs.capability[0] not in package.capabilities:
        had = ".".join(map(str, needs.capability))
        wanted = ", ".join(f"{major}.x" for major in package.capabilities)
        return f"runs on compute capability {wanted}, and this GPU has {had}"
    if needs.head_dim > 256 or needs.head_dim % 8:
        return f"needs a multiple of 8 up to 256 as head dimension, and it is {needs.head_dim}"
    if needs.dropout and name != "flash_attention_2":
        return "has no dropout, and the model's attention_dropout is not 0"
    is_exact = torch.are_deterministic_algorithms_enabled()
    if is_exact and needs.head_dim > 192 and name != "flash_attention_2":
        return f"has no deterministic backward pass for head dimension {needs.head_dim}"
    if name == "flash_attention_4" and needs.capability[0] >= 10:
        if 128 < needs.head_dim < 256:
            return f"has no kernel for head dimension {needs.head_dim} on this GPU"
        if needs.head_dim == 256 and needs.softcap:
            return "cannot train soft-capped logits at head dimension 256 on this GPU"
    try:
        flash.load(name)
    except ImportError as error:
        return f"is not installed ({error}); install {package.install}"
    return None


def _no_problem(needs: Needs) -> None:
    return None


BACKENDS = {
    "sdpa": Backend("sdpa", attend_sdpa, _no_problem),
    **{
        name: Backend(
            name,
            functools.partial(flash.attend_flash, name=name),
            functools.partial(_flash_problem, name),
        )
        for name in flash.PACKAGES
    },
}
AUTO: dict[int, tuple[str, ...]] = {
    8: ("flash_attention_2", "sdpa"),
    9: ("flash_attention_3", "sdpa"),
    10: ("sdpa",),
    12: ("flash_attention_2", "sdpa"),
}
"""What `auto` tries, in this order, by major compute capability; sdpa alone on other GPUs.

On Hopper and data-center Blackwell torch runs cuDNN's kernel, which is faster than
FlashAttention 2. Version 4 is a beta and is used only if it is named.
"""

SOFTCAPPED = ("flash_attention_3", "flash_attention_2", "sdpa")
"""What `auto` tries if logits are soft-capped: sdpa computes them by its exact, slow path alone."""
