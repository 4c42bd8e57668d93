"""What lies in a model's folder: checked before it is used, written so that others can load it."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from transformers import PreTrainedConfig

from longred.errors import ConfigError, PreflightError
from longred.method.rope import DYNAMIC_REFUSED, ROPE_TYPES
from longred.models.architectures import ARCHITECTURES, SLIDING, main_rope, rope_is_nested
from longred.store.artifacts import write_json

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
REFERENCE_NAME = "weights.json"
"""Names the folder that holds the weights, where a folder has none of its own."""

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files that go with a model unchanged, apart from the tokenizer's length limit."""


def check_folder(folder: Path) -> None:
    """Refuse a model folder that cannot be used, before anything is built on it.

    Raises:
        PreflightError: files are missing or damaged.
        ConfigError: the model is pickled, quantized, needs code of its own, or has an unsupported
            architecture.
    """
    if not folder.is_dir():
        raise PreflightError(f"model.path: {folder} is not a folder")
    config = read_object(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists() and read_object(folder / name).get("auto_map"):
            raise ConfigError(
                f"{folder / name}: auto_map asks for Python code of the model's own, which is "
                "never run; give a model of a built-in architecture"
            )
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{folder / 'config.json'}: architecture {architecture} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{folder / 'adapter_config.json'}: transformers would add these adapters to the "
            "weights beside them; merge them into the weights, or give the model without them"
        )
    if config.get("quantization_config"):
        raise ConfigError(
            f"{folder / 'config.json'}: the weights are quantized; give the unquantized model"
        )
    _check_rope(folder / "config.json", config)
    if not (folder / "tokenizer.json").is_file():
        raise PreflightError(
            f"{folder}: tokenizer.json is missing; load the tokenizer in its fast form and save it "
            "there with save_pretrained"
        )
    _check_vocabulary(folder / "tokenizer.json", config)
    for file in weight_files(folder):
        try:
            with safetensors.safe_open(file, framework="pt") as shard:
                shard.keys()
        except (OSError, safetensors.SafetensorError) as error:
            raise PreflightError(
                f"{file}: cannot be read as safetensors ({error}); fetch the file again"
            ) from error


def weight_files(folder: Path, *, original: Path | None = None) -> list[Path]:
    """Return the safetensors files of a model folder, following `weights.json` to the original's.

    Args:
        folder: the model folder.
        original: where the original model is now, should it have moved since.

    Raises:
        PreflightError: there are none, or some are missing.
        ConfigError: the weights are pickled.
    """
    folder = _weights_folder(folder, original)
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if (folder / WEIGHTS_INDEX_NAME).is_file():
        weight_map = read_object(folder / WEIGHTS_INDEX_NAME).get("weight_map") or {}
        files = [folder / name for name in sorted({Path(str(f)).name for f in weight_map.values()})]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise PreflightError(
                f"{folder / WEIGHTS_INDEX_NAME}: the weight files it names are missing: "
                f"{', '.join(missing) or 'it names none'}; fetch the model again"
            )
        return files
    pickled = [f.name for kind in ("*.bin", "*.pt", "*.pth") for f in sorted(folder.glob(kind))]
    if pickled:
        raise ConfigError(
            f"{folder}: the weights are pickled ({pickled[0]}), and reading a pickle can run code; "
            "convert them to safetensors first"
        )
    raise PreflightError(f"{folder}: has no weights ({WEIGHTS_NAME} or {WEIGHTS_INDEX_NAME})")


def download(name: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the local copy of a model on the hub, with or without its weights, fetched at need.

    Raises:
        ConfigError: no revision is given.
        PreflightError: the hub cannot be reached, or does not hand the model out.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    from longred.models.hub import HUB

    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigError(
            f"model.path: {name} is no folder here, so it is looked for on the hub, and there "
            "model.revision must be the full commit hash (40 hexadecimal digits), since a branch "
            "can move"
        )
    # Some hold the weights twice, once more in the maker's own layout.
    files = [WEIGHTS_NAME, "model-*.safetensors", WEIGHTS_INDEX_NAME] if weights else []
    wanted = ["config.json", *files, *COMPANIONS]
    HUB.probe()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        reason = HUB.problem or f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise PreflightError(
            f"model.path: {name} at {revision} cannot be fetched ({reason}); connect to the hub "
            "and accept the model's licence there, or set model.path to a local folder that holds "
            "the model"
        ) from error


def write_config(config: PreTrainedConfig, folder: Path) -> None:
    """Write config.json with RoPE as transformers 5 (`rope_parameters`) and 4 read it.

    Version 4 looks for `rope_theta` and `rope_scaling`; where they are missing it runs with a
    rope_theta of 10,000 and says nothing.

    Raises:
        ConfigError: version 4 has no words for the RoPE of the sliding layers.
    """
    values = json.loads(config.to_json_string(use_diff=False))
    values.update(legacy_rope(config))
    # `type` is what version 5 keeps of Phi-3's older form, beside the rope_type that it means.
    values["rope_parameters"] = {k: v for k, v in config.rope_parameters.items() if k != "type"}
    for key in ("max_position_embeddings", "original_max_position_embeddings", "sliding_window"):
        if values.get(key) is not None:
            values[key] = int(values[key])
    for key in ("_name_or_path", "_attn_implementation", "id2label", "label2id"):
        values.pop(key, None)
    write_json(folder / "config.json", values)


def legacy_rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a configuration's RoPE in the keys of transformers 4.

    Raises:
        ConfigError: it has none for the RoPE of the sliding layers.
    """
    rope = main_rope(config)
    rope.pop("type", None)
    values: dict[str, Any] = {"rope_theta": rope.pop("rope_theta")}
    partial = rope.pop("partial_rotary_factor", None)
    if partial is not None:
        values["partial_rotary_factor"] = partial
    if rope_is_nested(config):
        sliding = config.rope_parameters[SLIDING]
        if sliding["rope_type"] != "default":
            raise ConfigError(
                f"the sliding layers' RoPE is of type {sliding['rope_type']}, which transformers 4 "
                "cannot read"
            )
        values["rope_local_base_freq"] = sliding["rope_theta"]
    if rope["rope_type"] == "default":
        return {**values, "rope_scaling": None}
    if config.model_type == "phi3":
        # Its version 4 takes exactly these three, and the rest from the two windows.
        factors = {key: rope[key] for key in ("short_factor", "long_factor")}
        return {**values, "rope_scaling": {"type": rope["rope_type"], **factors}}
    return {**values, "rope_scaling": rope}


def copy_companions(source: Path, folder: Path, *, max_length: int) -> None:
    """Copy a model's tokenizer and generation settings, with the tokenizer's new length limit.

    Args:
        source: the folder to copy from.
        folder: the folder to copy to.
        max_length: the new `model_max_length`, tokens.
    """
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        values = {**read_object(settings), "model_max_length": int(max_length)}
        if values.get("tokenizer_class") == "TokenizersBackend":
            # Version 5's name for the same class; version 4 does not know it, 5 knows both.
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(settings, values)


def _check_rope(path: Path, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    parts = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    for part in parts:
        kind = part.get("rope_type", part.get("type", "default"))
        if kind == "dynamic":
            raise ConfigError(f"{path}: the model's RoPE is not supported: {DYNAMIC_REFUSED}")
        # Phi-3's first name of longrope.
        if "mrope_section" in part:
            kind = "mrope (mrope_section)"
        if kind not in (*ROPE_TYPES, "su"):
            raise ConfigError(
                f"{path}: RoPE of type {kind} is not supported; supported: {', '.join(ROPE_TYPES)}"
            )


def _check_vocabulary(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that is not the model's: ids beyond its embeddings, or far too few."""
    tokenizer = read_object(path)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    added = [token["id"] for token in tokenizer.get("added_tokens") or []]
    count = 1 + max((*ids, *added), default=-1)
    size = config.get("vocab_size")
    if not count:
        raise PreflightError(f"{path}: holds no vocabulary; save the model's tokenizer there again")
    # Models round their embeddings up, at most by some hundreds of rows.
    if isinstance(size, int) and not size / 2 <= count <= size:
        raise ConfigError(
            f"{path}: has {count} token ids and the model's vocab_size is {size}; give the "
            "tokenizer that belongs to the model"
        )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        PreflightError: the file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PreflightError(f"{path}: is missing; the folder holds no model") from error
    except (OSError, ValueError) as error:
        raise PreflightError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise PreflightError(f"{path}: must hold a JSON object")
    return values


def _weights_folder(folder: Path, original: Path | None) -> Path:
    reference = folder / REFERENCE_NAME
    if not reference.is_file():
        return folder
    named = Path(str(read_object(reference).get("folder")))
    target = folder / named
    if not named.is_absolute():
        if not target.is_dir():
            raise PreflightError(
                f"{reference}: the student {target} that training goes on from is gone; run the "
                "recipe again"
            )
        return target
    if not target.is_dir() and original is not None:
        return original
    if not target.is_dir():
        raise PreflightError(
            f"{reference}: the original model's folder {target} is gone; put it back, or run the "
            "recipe again with the model's new model.path"
        )
    return target
