"""Which kernels compute the attention, and whether they can for a model on a device."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from longred.attention import flash
from longred.attention.cudnn import loaded_cudnn, say_cudnn
from longred.attention.sdpa import Rules, attend_sdpa
from longred.attention.varlen import HALF
from longred.errors import ConfigError, PreflightError

log = logging.getLogger("longred.attention")


class Needs(NamedTuple):
    """What a model asks of its kernels.

    Attributes:
        device: type of the device.
        capability: of the GPU, (0, 0) where there is none.
        dtype: what attention is computed in.
        head_dim: of queries and keys.
        softcap: whether logits are soft-capped.
        dropout: whether attention probabilities are dropped.
    """

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    softcap: bool
    dropout: bool


Attend = Callable[[Tensor, Tensor, Tensor, Rules], Tensor]


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute the attention: query_BHTd, key_BhTd, value_BhTd, rules → output_BTHd.

    Attributes:
        name: its key in `BACKENDS`.
        attend: computes it.
        problem: says why it cannot serve a model, or returns None.
    """

    name: str
    attend: Attend
    problem: Callable[[Needs], str | None]


def needs_of(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> Needs:
    """Return what a model's attention needs on a device."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    softcap = getattr(config, "attn_logit_softcapping", None) is not None
    dropout = bool(getattr(config, "attention_dropout", 0.0))
    return Needs(device.type, capability, dtype, int(head_dim), softcap, dropout)


def choose_backend(name: str, needs: Needs) -> Backend:
    """Return the backend of a name, or for `auto` the fastest that can serve; logged once.

    In float32 every name stands for sdpa: no FlashAttention kernel computes in it.

    Raises:
        ConfigError: the name is unknown.
        PreflightError: the backend is not installed or cannot do what the model needs.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(
            f"attention.backend: {name!r} is not one of {', '.join(('auto', *BACKENDS))}"
        )
    backend, why = BACKENDS["sdpa"], ""
    if needs.dtype not in HALF:
        why = f"; {name} computes in bf16 or fp16" if name not in ("auto", "sdpa") else ""
    elif name == "auto":
        names = automatic_order(needs)
        backend = next(BACKENDS[n] for n in names if BACKENDS[n].problem(needs) is None)
    else:
        backend = BACKENDS[name]
        problem = backend.problem(needs)
        if problem is not None:
            raise PreflightError(f"attention.backend: {name} {problem}; use auto or sdpa")
    of_torch = ""
    if backend.name == "sdpa":
        exact = "; logits are soft-capped, so by the exact path" if needs.softcap else ""
        cudnn = say_cudnn(loaded_cudnn()) if needs.device == "cuda" else ""
        of_torch = exact or (f" ({cudnn})" if cudnn else "")
    _say(f"attention: {backend.name}{of_torch}{why}")
    return backend


@functools.cache
def _say(text: str) -> None:
    log.info(text)


def _flash_problem(name: str, capabilities: tuple[int, ...], needs: Needs) -> str | None:
    if needs.device != "cuda":
        return f"needs a CUDA GPU, and the model is on {needs.device}"
    if needs.capability[0] not in capabilities:
        had = ".".join(map(str, needs.capability))
        wanted = ", ".join(f"{major}.x" for major in capabilities)
        return f"runs on compute capability {wanted}, and this GPU has {had}"
    if needs.head_dim > 256 or needs.head_dim % 8:
        return f"takes head dimensions up to 256 by eights, and the model has {needs.head_dim}"
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
        return f"is not installed ({error}); install {flash.PACKAGES[name]}"
    return None


def _flash(name: str, *capabilities: int) -> Backend:
    return Backend(
        name,
        functools.partial(flash.attend_flash, name=name),
        functools.partial(_flash_problem, name, capabilities),
    )


def _no_problem(_: Any) -> None:
    return None


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("sdpa", attend_sdpa, _no_problem),
        _flash("flash_attention_2", 8, 9, 10, 12),
        _flash("flash_attention_3", 9),
        _flash("flash_attention_4", 9, 10, 11),
    )
}
AUTO: dict[int, tuple[str, ...]] = {
    8: ("flash_attention_2", "sdpa"),
    9: ("flash_attention_3", "sdpa"),
    10: ("sdpa",),
    12: ("flash_attention_2", "sdpa"),
}
"""By major compute capability, what `auto` tries in this order; elsewhere sdpa alone.

On Hopper and data-center Blackwell torch runs cuDNN's kernel, which is faster than
FlashAttention 2. Version 4 is a beta and has to be asked for by name.
"""

SOFTCAPPED = ("flash_attention_3", "flash_attention_2", "sdpa")
"""The same where logits are soft-capped, which sdpa computes by its exact, slow path alone."""


def automatic_order(needs: Needs) -> tuple[str, ...]:
    """Return the backends that `auto` tries for a model, first to last."""
    return SOFTCAPPED if needs.softcap else AUTO.get(needs.capability[0], ("sdpa",))
