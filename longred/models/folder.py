"""The files of a model folder: checked before use, written so that other tools can load them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from longred.errors import ConfigError, PreflightError
from longred.method.rope import DYNAMIC_REFUSED, ROPE_TYPES, switches
from longred.models.architectures import SLIDING, main_rope, rope_is_nested
from longred.store.artifacts import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
REFERENCE_NAME = "weights.json"
"""The file that names the folder of the weights, in a folder without weights."""

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
"""Files that are copied with a model unchanged, except for the tokenizer's length limit."""


def check_folder(folder: Path, key: str = "model.path") -> None:
    """Refuse a model folder that cannot be used.

    Args:
        folder: the folder.
        key: the setting that named it.

    Raises:
        PreflightError: files are missing or damaged.
        ConfigError: the model is pickled, quantized, needs code of its own, or has an unsupported
            architecture.
    """
    if not folder.is_dir():
        raise PreflightError(
            f"{key}: {folder} is a file; give the folder of the model, or a .gguf file"
        )
    path = folder / "config.json"
    config = read_object(path)
    for file in (path, folder / "tokenizer_config.json"):
        if file.exists() and read_object(file).get("auto_map"):
            raise ConfigError(
                f"{file}: auto_map asks for Python code of the model's own, which is never run; "
                "give a model of a built-in architecture"
            )
    architecture = str((config.get("architectures") or ["(none)"])[0])
    if not architecture.endswith("ForCausalLM"):
        raise ConfigError(
            f"{path}: architecture {architecture} is not supported; give a decoder of text alone, "
            "whose architecture ends in ForCausalLM"
        )
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{folder / 'adapter_config.json'}: transformers would add these adapters to the "
            "weights beside them; merge them into the weights, or give the model without them"
        )
    if config.get("quantization_config"):
        raise ConfigError(f"{path}: the weights are quantized; give the unquantized model")
    _check_rope(path, config)
    if not (folder / "tokenizer.json").is_file():
        raise PreflightError(
            f"{folder}: tokenizer.json is missing; load the tokenizer in its fast form and save it "
            "there with save_pretrained"
        )
    _check_vocabulary(folder / "tokenizer.json", config)
    for file in weight_files(folder):
        try:
            # Reading the header does not need torch, whose import takes seconds.
            with safetensors.safe_open(file, framework="np") as shard:
                shard.keys()
        except (OSError, safetensors.SafetensorError) as error:
            raise PreflightError(
                f"{file}: cannot be read as safetensors ({error}); fetch the file again"
            ) from error


def weight_files(folder: Path, *, original: Path | None = None) -> list[Path]:
    """Return the safetensors files of a model folder, or of the folder that `weights.json` names.

    Args:
        folder: the model folder.
        original: folder of the original model, in case it has moved.

    Raises:
        PreflightError: there are none, or some are missing.
        ConfigError: the weights are pickled.
    """
    folder = _weights_folder(folder, original)
    single, index = folder / WEIGHTS_NAME, folder / WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = read_object(index).get("weight_map") or {}
        files = [folder / name for name in sorted({Path(str(f)).name for f in weight_map.values()})]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise PreflightError(
                f"{index}: the weight files it names are missing: "
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


def write_config(config: "PreTrainedConfig", folder: Path) -> None:
    """Write config.json with RoPE in the keys of transformers 5 (`rope_parameters`) and 4.

    Version 4 reads `rope_theta` and `rope_scaling`; without them it silently runs with a
    rope_theta of 10,000.

    Raises:
        ConfigError: version 4 cannot express the RoPE of the sliding layers.
    """
    values = json.loads(config.to_json_string(use_diff=False))
    values.update(_legacy_rope(config))
    # Version 5 renamed some values and keeps the name of version 4 (num_experts of Qwen3-MoE).
    values |= {old: values[new] for old, new in config.attribute_map.items() if new in values}
    # Version 5 leaves `type` from Phi-3's older form beside the equivalent rope_type.
    values["rope_parameters"] = {k: v for k, v in config.rope_parameters.items() if k != "type"}
    for key in ("max_position_embeddings", "original_max_position_embeddings", "sliding_window"):
        if values.get(key) is not None:
            values[key] = int(values[key])
    for key in ("_name_or_path", "_attn_implementation", "id2label", "label2id"):
        values.pop(key, None)
    write_json(folder / "config.json", values)


def _legacy_rope(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return a configuration's RoPE in the keys of transformers 4."""
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
        # Version 4 accepts exactly these three keys and derives the rest from the two windows.
        factors = {key: rope[key] for key in ("short_factor", "long_factor")}
        return {**values, "rope_scaling": {"type": rope["rope_type"], **factors}}
    if config.model_type in ("olmo", "olmo2"):
        # Version 4 accepts exactly these two keys.
        linear = {"type": rope["rope_type"], "factor": float(rope["factor"])}
        return {**values, "rope_scaling": linear}
    if switches(rope):
        # Version 4 takes the window of the switch from here alone.
        values["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return {**values, "rope_scaling": rope}


def copy_companions(source: Path, folder: Path, *, max_length: int) -> None:
    """Copy a model's tokenizer and generation settings; set the tokenizer's length limit.

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
            # Version 5's name for the same class; version 4 knows only the other.
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(settings, values)


def _check_rope(path: Path, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    for part in [part for part in rope.values() if isinstance(part, Mapping)] or [rope]:
        kind = part.get("rope_type", part.get("type", "default"))
        if kind == "dynamic":
            raise ConfigError(f"{path}: the model's RoPE is not supported: {DYNAMIC_REFUSED}")
        if "mrope_section" in part:
            kind = "mrope (mrope_section)"
        # Phi-3 first called longrope `su`.
        if kind not in (*ROPE_TYPES, "su"):
            raise ConfigError(
                f"{path}: RoPE of type {kind} is not supported; supported: {', '.join(ROPE_TYPES)}"
            )


def _check_vocabulary(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that does not fit the model's embeddings.

    Control tokens may lie beyond them, as Gemma 3's place for an image does: they are split where a
    text contains them, so they never occur, unless the tokenizer itself puts them around a text.
    """
    tokenizer = read_object(path)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    added = tokenizer.get("added_tokens") or []
    control = {token["id"] for token in added if token.get("special")}
    put_around = _ids_in(tokenizer.get("post_processor"))
    occurring = ({*ids, *(token["id"] for token in added)} - control) | put_around
    count = 1 + max(occurring, default=-1)
    size = config.get("vocab_size")
    if not count:
        raise PreflightError(f"{path}: holds no vocabulary; save the model's tokenizer there again")
    # Models may have some hundreds of unused embedding rows.
    if isinstance(size, int) and not size / 2 <= count <= size:
        raise ConfigError(
            f"{path}: has {count} token ids and the model's vocab_size is {size}; give the "
            "tokenizer that belongs to the model"
        )


def _ids_in(processor: Any) -> set[int]:
    """Return the ids of the tokens that a post-processor of tokenizer.json puts around a text."""
    if not isinstance(processor, Mapping):
        return set()
    # A template names its tokens; others, such as BERT's, have pairs of token and id.
    named = processor.get("special_tokens")
    found = [id for token in (named or {}).values() for id in token.get("ids", ())]
    found += [pair[1] for pair in (processor.get("sep"), processor.get("cls")) if pair]
    return set(found).union(*map(_ids_in, processor.get("processors") or ()))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model folder.

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
    """Return the folder itself, or the one that its `weights.json` names."""
    reference = folder / REFERENCE_NAME
    if not reference.is_file():
        return folder
    named = Path(str(read_object(reference).get("folder")))
    target = folder / named
    if target.is_dir():
        return target
    if not named.is_absolute():
        raise PreflightError(
            f"{reference}: the student {target} that training starts from is gone; run the recipe "
            "again"
        )
    if original is not None:
        return original
    raise PreflightError(
        f"{reference}: the original model's folder {target} is gone; put it back, or run the "
        "recipe again with the model's new model.path"
    )
