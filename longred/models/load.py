"""Find, load, run and save models, original or extended.

Shapes: B rows, T tokens, D hidden dimension; N decoder layers. Hidden state i (1 to N) is the
output of decoder layer i - 1, except that N is taken after the final norm, as in transformers'
`hidden_states`.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from longred.attention.backends import choose_backend, needs_of
from longred.attention.function import ATTENTION_NAME, Capture, Captured, guard, register
from longred.errors import ConfigError, MismatchError, PreflightError
from longred.models.architectures import layer_types
from longred.models.find import resolve_model as resolve_model
from longred.models.folder import (
    copy_companions,
    read_object,
    weight_files,
    write_config,
)
from longred.models.vector_math import warm_up_vector_math
from longred.store.artifacts import storage_errors


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out a warning of every load: keys of mixed windows that vLLM reads."""
    return "short_mscale" not in record.getMessage()


logging.getLogger("transformers.modeling_rope_utils").addFilter(_is_news)


def choose_device(name: str, key: str = "device") -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Args:
        name: one of these.
        key: the setting that an error message names.

    Raises:
        PreflightError: there is no GPU for `cuda`.
        ConfigError: the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"{key}: {name!r} is not one of auto, cpu, cuda")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise PreflightError(f"{key}: cuda is asked for but torch finds no GPU; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a model folder.

    Raises:
        PreflightError: it is missing or invalid.
    """
    read_object(folder / "config.json")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreflightError(
            f"{folder / 'config.json'}: is not a valid model configuration ({error})"
        ) from error
    return config


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = ATTENTION_NAME,
    original: Path | None = None,
    backend: str = "auto",
    compute_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Load a model in eval mode, from safetensors only and without running the folder's code.

    Args:
        folder: a Hugging Face folder, or one whose `weights.json` points to the weights.
        dtype: of the parameters; RoPE's frequencies stay in fp32.
        device: of the parameters.
        attention: `longred`, or `sdpa` for rows with padding.
        original: folder of the original model, in case `weights.json` points to an old one.
        backend: of attention `longred`: `auto` or a key of `longred.attention.backends.BACKENDS`.
        compute_dtype: of attention, if autocast computes it in another type than `dtype`.

    Raises:
        PreflightError: files are missing or damaged, or the backend cannot serve the model.
        MismatchError: the weights do not fit the configuration.
    """
    register()
    warm_up_vector_math()
    config = load_config(folder)
    kernels = None
    if attention == ATTENTION_NAME:
        needs = needs_of(config, torch.device(device), compute_dtype or dtype)
        kernels = choose_backend(backend, needs)
    weights = weight_files(folder, original=original)[0].parent
    misfit = f"{weights}: the weights do not fit {folder / 'config.json'}"
    loader: Any = AutoModelForCausalLM
    try:
        with no_progress_bars():
            model, report = loader.from_pretrained(
                weights,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, safetensors.SafetensorError) as error:
        raise PreflightError(
            f"{weights}: the weights cannot be read ({error}); fetch the model again"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise MismatchError(f"{misfit} ({error})") from error
    # transformers fills missing weights with random numbers and only warns.
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise MismatchError(f"{misfit}: {len(wrong)} missing or unknown, first {wrong[0]}")
    if kernels is not None:
        guard(model, kernels)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def build_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    backend: str = "auto",
    compute_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Build the model of `load_model` with its weights on the meta device, without memory.

    Buffers, which are not in files (RoPE's frequencies), are real.

    Args:
        folder: as `load_model`.
        dtype: of the parameters.
        device: future device of the parameters.
        backend: of attention.
        compute_dtype: as `load_model`.

    Raises:
        PreflightError: the configuration is missing, or the backend cannot serve the model.
    """
    register()
    warm_up_vector_math()
    config = load_config(folder)
    kernels = choose_backend(backend, needs_of(config, device, compute_dtype or dtype))
    loader: Any = AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model = loader.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION_NAME, trust_remote_code=False
        )
    # Moving to the meta device separated tied weights.
    model.tie_weights()
    guard(model, kernels)
    built: PreTrainedModel = model.eval()
    return built


def load_tokenizer(folder: Path, *, add_bos: bool | None = None) -> PreTrainedTokenizerFast:
    """Load a tokenizer that treats control tokens in a text as plain text.

    Args:
        folder: a model folder.
        add_bos: whether it puts BOS before a text; None to leave it as it is.

    Raises:
        PreflightError: it is missing or damaged.
        ConfigError: BOS is asked for, and it has none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            use_fast=True,
            split_special_tokens=True,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreflightError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise PreflightError(f"{folder}: the tokenizer has no fast form (tokenizer.json)")
    if add_bos is not None:
        _set_bos(tokenizer, folder, add_bos)
    return tokenizer


def _set_bos(tokenizer: PreTrainedTokenizerFast, folder: Path, add_bos: bool) -> None:
    """Make a tokenizer put BOS, or nothing, before a text."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    if add_bos and bos is None:
        raise ConfigError(
            "evaluation.add_bos_token (data.add_bos, if that is not set): the tokenizer of "
            f"{folder} has no BOS token; use false or null"
        )
    template = f"{bos} $A" if add_bos else "$A"
    specials = [(bos, tokenizer.bos_token_id)] if add_bos else []
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=specials
    )


def hidden_states(
    model: PreTrainedModel,
    input_ids_BT: Tensor,
    *,
    layers: Sequence[int],
    position_ids_BT: Tensor | None = None,
    document_ids_BT: Tensor | None = None,
    capture: Capture | None = None,
    sequence: DeviceMesh | None = None,
) -> dict[int, Tensor]:
    """Run the model without its LM head and return the hidden_BTD of some layers.

    Other hidden states are not stored. Gradients flow, with and without activation checkpointing.

    Args:
        model: a causal language model.
        input_ids_BT: tokens.
        layers: `hidden_states` indices, 1 to N.
        position_ids_BT: positions, which may skip; 0 to T - 1 if None.
        document_ids_BT: runs of equal ids are documents; only for attention `longred`.
        capture: called with the attention inputs of each layer, again when a layer is recomputed;
            only for attention `longred`.
        sequence: processes that share the rows, each with its own tokens, their positions, and the
            document ids of whole rows; only for attention `longred`.

    Raises:
        ValueError: a layer is not in 1 to N, or the model's attention does not support documents.
    """
    base: Any = model.base_model
    num_layers = len(base.layers)
    for layer in set(layers) - set(range(1, num_layers + 1)):
        raise ValueError(f"hidden state {layer} does not exist; the model has 1 to {num_layers}")
    extra: dict[str, Any] = {}
    if base.config._attn_implementation == ATTENTION_NAME:
        extra = {"document_ids_BT": document_ids_BT, "capture": capture, "sequence": sequence}
    elif any(x is not None for x in (document_ids_BT, position_ids_BT, capture, sequence)):
        raise ValueError("documents and skipped positions need a model with attention='longred'")
    states: dict[int, Tensor] = {}
    inner = {layer for layer in layers if layer < num_layers}
    hooks = [base.layers[i - 1].register_forward_hook(partial(_store, states, i)) for i in inner]
    try:
        output = base(
            input_ids=input_ids_BT, position_ids=position_ids_BT, use_cache=False, **extra
        )
    finally:
        for hook in hooks:
            hook.remove()
    states[num_layers] = output.last_hidden_state
    return {layer: states[layer] for layer in layers}


class LayerOutput(NamedTuple):
    """The output of one decoder layer.

    Attributes:
        layer: 0 to N - 1.
        kind: `full_attention` or `sliding_attention`.
        hidden_BTD: hidden state `layer` + 1; the last one after the final norm.
        captured: the inputs of its attention.
    """

    layer: int
    kind: str
    hidden_BTD: Tensor
    captured: Captured


def run_layers(
    model: PreTrainedModel, input_ids_BT: Tensor, *, position_ids_BT: Tensor | None = None
) -> Iterator[LayerOutput]:
    """Run the decoder layers one at a time, so that two models can run side by side.

    Stores only the newest hidden state. Each layer is called with the arguments that the model's
    own forward gives it.

    Args:
        model: a causal language model, with attention `longred`.
        input_ids_BT: tokens; each row is one document.
        position_ids_BT: positions, which may skip; 0 to T - 1 if None.
    """
    base: Any = model.base_model
    captured: list[Captured] = []
    arguments: dict[str, Any] = {"capture": captured.append, "use_cache": False}
    if position_ids_BT is not None:
        arguments["position_ids"] = position_ids_BT.to(model.device)
    calls = _layer_calls(base, input_ids_BT.to(model.device), arguments)
    hidden_BTD, kinds = calls[0].args[0], layer_types(model.config)
    for layer, (module, call) in enumerate(zip(base.layers, calls, strict=True)):
        captured.clear()
        output = module(hidden_BTD, *call.args[1:], **call.kwargs)
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        if layer == len(kinds) - 1:
            hidden_BTD = base.norm(hidden_BTD)
        yield LayerOutput(layer, kinds[layer], hidden_BTD, captured[0])


class _Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _layer_calls(base: Any, input_ids_BT: Tensor, arguments: Mapping[str, Any]) -> list[_Call]:
    """Return the arguments of each decoder layer in a forward pass; no layer is computed.

    The first argument is the embedded input, in every call.
    """
    calls: list[_Call] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        calls.append(_Call(args, kwargs))
        return args[0]

    own = [(layer, vars(layer).get("forward")) for layer in base.layers]
    try:
        for layer, _ in own:
            layer.forward = keep
        base(input_ids=input_ids_BT, **arguments)
    finally:
        for layer, forward in own:
            del layer.forward
            if forward is not None:
                layer.forward = forward
    return calls


def save_model(
    model: PreTrainedModel, source_folder: Path, folder: Path, *, shard_size: str = "50GB"
) -> None:
    """Write a model folder that both transformers 4 and 5 load.

    Args:
        model: the model to write.
        source_folder: folder to copy tokenizer and generation settings from.
        folder: an existing or new folder.
        shard_size: largest size of a weight file.

    Raises:
        StorageError: the disk is full.
    """
    with storage_errors(folder), no_progress_bars():
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=shard_size)
        write_config(model.config, folder)
        copy_companions(source_folder, folder, max_length=model.config.max_position_embeddings)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars; the command line has its own."""
    bars: Any = transformers_logging
    was_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bars.enable_progress_bar()


def _store(states: dict[int, Tensor], layer: int, _module: Any, _args: Any, output: Any) -> None:
    """Store the output of a decoder layer, as its forward hook."""
    states[layer] = output[0] if isinstance(output, tuple) else output
