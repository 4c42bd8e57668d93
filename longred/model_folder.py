"""What lies in a model's folder: checked before it is used, written so that others can load it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors
from transformers import PreTrainedConfig

from longred.architectures import ARCHITECTURES
from longred.artifacts import write_json
from longred.errors import ConfigError, PreflightError

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
    if config.get("quantization_config"):
        raise ConfigError(
            f"{folder / 'config.json'}: the weights are quantized; give the unquantized model"
        )
    if not (folder / "tokenizer.json").is_file():
        raise PreflightError(
            f"{folder}: tokenizer.json is missing; load the tokenizer in its fast form and save it "
            "there with save_pretrained"
        )
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


def download(name: str, revision: str | None) -> Path:
    """Return the local copy of a model on the hub, fetched where it is not there yet.

    Raises:
        ConfigError: no revision is given.
        PreflightError: the hub cannot be reached, or does not hand the model out.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigError(
            f"model.path: {name} is no folder here, so it is looked for on the hub, and there "
            "model.revision must be the full commit hash (40 hexadecimal digits), since a branch "
            "can move"
        )
    wanted = ["config.json", "*.safetensors", WEIGHTS_INDEX_NAME, *COMPANIONS]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PreflightError(
            f"model.path: {name} at {revision} cannot be fetched "
            f"({type(error).__name__}: {reason}); connect to the hub and accept the model's "
            "licence there, or set model.path to a local folder that holds the model"
        ) from error


def write_config(config: PreTrainedConfig, folder: Path) -> None:
    """Write config.json with RoPE as transformers 5 (`rope_parameters`) and 4 read it.

    Version 4 looks for `rope_theta` and `rope_scaling`; where they are missing it runs with a
    rope_theta of 10,000 and says nothing.
    """
    values = json.loads(config.to_json_string(use_diff=False))
    rope = dict(config.rope_parameters)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    values["rope_parameters"] = rope
    values["rope_theta"] = rope["rope_theta"]
    values["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    values["max_position_embeddings"] = int(config.max_position_embeddings)
    for key in ("_name_or_path", "_attn_implementation", "id2label", "label2id"):
        values.pop(key, None)
    write_json(folder / "config.json", values)


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
    target = Path(str(read_object(reference).get("folder")))
    if not target.is_dir() and original is not None:
        return original
    if not target.is_dir():
        raise PreflightError(
            f"{reference}: the original model's folder {target} is gone; put it back, or run the "
            "recipe again with the model's new model.path"
        )
    return target
