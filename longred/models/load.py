"""The original and the extended model: how they are found, loaded, run and saved.

Shapes: B rows, T tokens, D hidden dimension; N decoder layers. Hidden state i (1 to N) is the
output of decoder layer i - 1, except that N is taken after the final norm, as in transformers'
`hidden_states`.
"""

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn
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
from longred.models.architectures import layer_types, rope_is_nested
from longred.models.folder import (
    check_folder,
    copy_companions,
    download,
    read_object,
    weight_files,
    write_config,
)
from longred.store.artifacts import storage_errors

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(path: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the checked local folder of a model.

    Args:
        path: `demo`, a Hugging Face folder, or a name on the hub.
        revision: the commit of a hub name; required there, so that a run can be repeated.
        weights: whether they are fetched and checked too; configuration and tokenizer always are.

    Raises:
        ConfigError: a hub name comes without a revision, or the model is of an unsupported kind.
        PreflightError: the model does not exist, cannot be reached, or its files are damaged.
    """
    local = Path(path).expanduser()
    if path == "demo":
        folder = Path(str(resources.files("longred.demo") / "model"))
    elif local.exists():
        folder = local.resolve()
    elif _HUB_NAME.fullmatch(path):
        folder = download(path, revision, weights=weights)
    else:
        raise PreflightError(
            f"model.path: {path!r} is no folder on this machine; give 'demo', the folder of a "
            "Hugging Face model, or a hub name of the form owner/model"
        )
    if weights:
        check_folder(folder)
    return folder


def choose_device(name: str, key: str = "device") -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for.

    Args:
        name: one of them.
        key: the setting that an error names.

    Raises:
        PreflightError: `cuda` is asked for and there is none.
        ConfigError: the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"{key}: {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise PreflightError(f"{key}: cuda is asked for but torch finds no GPU; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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
    """Load a model in eval mode from safetensors only, running no code of the folder's own.

    Args:
        folder: a Hugging Face folder, or one whose `weights.json` points to the weights.
        dtype: of the parameters; RoPE's frequencies stay in fp32.
        device: where the parameters go.
        attention: `longred`, or `sdpa` for rows with padding.
        original: where the original model is now, for a folder that points to its weights.
        backend: of attention `longred`: `auto` or a key of `longred.attention.backends.BACKENDS`.
        compute_dtype: what attention is computed in, where autocast makes it another than `dtype`.

    Raises:
        PreflightError: files are missing or damaged, or the backend cannot serve the model.
        MismatchError: the weights do not fit the configuration.
    """
    register()
    config = copy.deepcopy(load_config(folder))
    kernels = None
    if attention == ATTENTION_NAME:
        needs = needs_of(config, torch.device(device), compute_dtype or dtype)
        kernels = choose_backend(backend, needs)
    weights = weight_files(folder, original=original)[0].parent
    loader: Any = AutoModelForCausalLM
    try:
        with _no_progress_bars():
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
        raise MismatchError(
            f"{weights}: the weights do not fit {folder / 'config.json'} ({error})"
        ) from error
    # transformers fills missing weights with random numbers and only warns.
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise MismatchError(
            f"{weights}: the weights do not fit {folder / 'config.json'}: "
            f"{len(wrong)} missing or unknown, first {wrong[0]}"
        )
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
    """Build what `load_model` loads, with its weights on the meta device: they take no memory.

    Buffers, which no file holds, are real and follow from the configuration: RoPE's frequencies.

    Args:
        folder: as `load_model`.
        dtype: of the parameters.
        device: where they will be.
        backend: of attention.
        compute_dtype: as `load_model`.

    Raises:
        PreflightError: the configuration is missing, or the backend cannot serve the model.
    """
    from accelerate import init_empty_weights

    register()
    config = copy.deepcopy(load_config(folder))
    kernels = choose_backend(backend, needs_of(config, device, compute_dtype or dtype))
    loader: Any = AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model = loader.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION_NAME, trust_remote_code=False
        )
    # Weights that are one were taken to the meta device one by one.
    model.tie_weights()
    guard(model, kernels)
    built: PreTrainedModel = model.eval()
    return built


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer that reads control tokens in a text as plain text.

    Raises:
        PreflightError: it is missing or damaged.
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
    return tokenizer


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
    """Run the model without its LM head and return the hidden_BTD of the asked layers.

    Only these are held. Gradients flow through them, with and without activation checkpointing.

    Args:
        model: a causal language model.
        input_ids_BT: tokens.
        layers: `hidden_states` indices, 1 to N.
        position_ids_BT: positions, which may skip; 0 to T - 1 if None.
        document_ids_BT: ids whose runs are documents; only attention `longred` knows them.
        capture: called with what each layer attends with, again when a layer is recomputed; only
            attention `longred` knows it.
        sequence: processes that share the rows, each with its own tokens, their positions, and the
            document ids of whole rows; only attention `longred` knows it.

    Raises:
        ValueError: a layer is not in 1 to N, or the model's attention does not know documents.
    """
    base: Any = model.base_model
    num_layers = len(base.layers)
    for layer in layers:
        if not 1 <= layer <= num_layers:
            raise ValueError(
                f"hidden state {layer} does not exist; the model has 1 to {num_layers}"
            )
    extra: dict[str, Any] = {}
    if base.config._attn_implementation == ATTENTION_NAME:
        extra = {"document_ids_BT": document_ids_BT, "capture": capture, "sequence": sequence}
    elif any(x is not None for x in (document_ids_BT, position_ids_BT, capture, sequence)):
        raise ValueError("documents and skipped positions need a model with attention='longred'")
    states: dict[int, Tensor] = {}
    inner = {layer for layer in layers if layer < num_layers}
    hooks = [base.layers[i - 1].register_forward_hook(_keep(states, i)) for i in inner]
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
    """What one decoder layer made.

    Attributes:
        layer: 0 to N - 1.
        kind: `full_attention` or `sliding_attention`.
        hidden_BTD: hidden state `layer` + 1: the last is taken after the final norm.
        captured: what the layer attended with.
    """

    layer: int
    kind: str
    hidden_BTD: Tensor
    captured: Captured


def run_layers(
    model: PreTrainedModel, input_ids_BT: Tensor, *, position_ids_BT: Tensor | None = None
) -> Iterator[LayerOutput]:
    """Run the decoder layers one at a time, so that two models can go side by side.

    Of all hidden states only the newest is held. This is the one place that repeats what
    transformers' forward does between the layers; the embedding scales itself where it has to.

    Args:
        model: a causal language model, with attention `longred`.
        input_ids_BT: tokens of rows that are one document each.
        position_ids_BT: positions, which may skip; 0 to T - 1 if None.
    """
    base: Any = model.base_model
    input_ids_BT = input_ids_BT.to(model.device)
    hidden_BTD = base.embed_tokens(input_ids_BT)
    if position_ids_BT is None:
        position_ids_BT = torch.arange(input_ids_BT.shape[1])[None]
    position_ids_BT = position_ids_BT.to(model.device)
    kinds = layer_types(model.config)
    if rope_is_nested(model.config):
        turns = {k: base.rotary_emb(hidden_BTD, position_ids_BT, k) for k in sorted(set(kinds))}
    else:
        turns = dict.fromkeys(kinds, base.rotary_emb(hidden_BTD, position_ids=position_ids_BT))
    captured: list[Captured] = []
    for layer, (module, kind) in enumerate(zip(base.layers, kinds, strict=True)):
        captured.clear()
        hidden_BTD = module(
            hidden_BTD,
            attention_mask=None,
            position_ids=position_ids_BT,
            position_embeddings=turns[kind],
            use_cache=False,
            capture=captured.append,
        )
        is_last = layer == len(kinds) - 1
        yield LayerOutput(
            layer, kind, base.norm(hidden_BTD) if is_last else hidden_BTD, captured[0]
        )


def save_model(
    model: PreTrainedModel, source_folder: Path, folder: Path, *, shard_size: str = "50GB"
) -> None:
    """Write a model folder that transformers 4 and 5 load alike.

    Args:
        model: the model to write.
        source_folder: whose tokenizer and generation settings go with it.
        folder: an existing or new folder; the caller gives it its final name.
        shard_size: of one weight file at most.

    Raises:
        StorageError: the disk is full.
    """
    with storage_errors(folder), _no_progress_bars():
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=shard_size)
        write_config(model.config, folder)
        copy_companions(source_folder, folder, max_length=model.config.max_position_embeddings)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' bars out of the terminal, where the command line shows its own."""
    bars: Any = transformers_logging
    was_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bars.enable_progress_bar()


def _keep(states: dict[int, Tensor], index: int) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        states[index] = output[0] if isinstance(output, tuple) else output

    return hook
