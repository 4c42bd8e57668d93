"""Models in GGUF files, converted once into folders that the rest of longred reads.

transformers reads the tensors and the model's settings. Its tokenizers ignore the rule by which a
text is split before the merges, which changes tokens silently, so they are made here. It also
ignores the scaling of RoPE, so such files are refused.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longred.errors import ConfigError, MismatchError, PreflightError
from longred.models.folder import write_config
from longred.store.artifacts import Store, storage_errors
from longred.store.hashes import FileHashes

VERSION = 1
"""Format version of converted folders."""

MAGIC = b"GGUF"
_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens in `tokenizer.ggml.token_type` that no merge makes."""
_SPLIT_FILE = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class SplitRule(NamedTuple):
    """How a byte-level BPE tokenizer prepares a text before its merges.

    Attributes:
        pattern: the pieces that merges never cross; None for the pattern of GPT-2.
        single_digits: every digit is a piece of its own.
        ignores_merges: a piece that is in the vocabulary is one token, whatever the merges say.
        normal_form: Unicode normal form that a text is brought into.
    """

    pattern: str | None = None
    single_digits: bool = False
    ignores_merges: bool = False
    normal_form: str | None = None


_LLAMA_3 = SplitRule(_WORDS.replace("DIGITS", "{1,3}"), ignores_merges=True)
SPLIT_RULES: Mapping[str, SplitRule] = {
    "gpt-2": SplitRule(),
    "smollm": SplitRule(single_digits=True),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": SplitRule(_WORDS.replace("DIGITS", ""), normal_form="NFC"),
}
"""The rules by their name in `tokenizer.ggml.pre`, as in the tokenizers of GPT-2, SmolLM, Llama-3
and Qwen2."""


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file."""
    return path.suffix == ".gguf" and path.is_file()


def gguf_folder(file: Path, *, weights: bool = True, key: str = "model.path") -> Path:
    """Return the model folder of a GGUF file; convert it first if that was not done before.

    The folder lies in the cache of the Hugging Face hub (HF_HOME), as a downloaded model does. The
    weights are dequantised to float32, which holds their values exactly.

    Args:
        file: the file; the model in one part.
        weights: also convert the weights.
        key: the setting that named the file, in messages.

    Raises:
        ConfigError: the model, its tokenizer or its RoPE cannot be read from GGUF.
        PreflightError: the file is damaged, or the package `gguf` is missing.
        MismatchError: the file lacks tensors of its architecture.
        StorageError: the disk is full.
    """
    from huggingface_hub import constants

    store = Store(Path(constants.HF_HOME) / "longred")
    digest = FileHashes(store.root / "hashes.json").sha256(file)

    def make(folder: Path, work: Path) -> None:
        content = _read(file, key)
        _check(content, file, key)
        # transformers shows bars of its own while it reads, with and without a terminal.
        with contextlib.redirect_stderr(io.StringIO()), storage_errors(folder):
            _write_model(file, folder, key, weights=weights)
            _write_tokenizer(content, folder)

    def artifact_values(has_weights: bool) -> dict[str, Any]:
        return {"gguf": digest, "weights": has_weights}

    whole = store.find("model", store.digest("model", artifact_values(True), {}, VERSION))
    if whole:
        return whole.folder
    return store.build("model", artifact_values(weights), {}, make, VERSION).folder


class Content(NamedTuple):
    """What a GGUF file says beside its numbers.

    Attributes:
        values: the settings.
        tensors: the names of the tensors.
    """

    values: Mapping[str, Any]
    tensors: tuple[str, ...]

    @property
    def rule(self) -> str:
        """Name of the rule by which the tokenizer splits text."""
        return str(self.values.get("tokenizer.ggml.pre", "gpt-2"))


def _read(file: Path, key: str) -> Content:
    if _SPLIT_FILE.search(file.name):
        raise ConfigError(
            f"{key}: {file} is one part of a split model; join the parts with llama.cpp's "
            f"gguf-split, or {_advice(key)}"
        )
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise PreflightError(f"{key}: {file} is not a GGUF file; fetch it again")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise PreflightError(f"{key}: {file} needs a package: pip install gguf") from error
    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise PreflightError(
            f"{key}: {file} is damaged or incomplete ({error}); fetch it again"
        ) from error
    values = {name: field.contents() for name, field in reader.fields.items()}
    return Content(values, tuple(tensor.name for tensor in reader.tensors))


def _advice(key: str) -> str:
    return f"set {key} to the folder of the model in Hugging Face's format"


def _check(content: Content, file: Path, key: str) -> None:
    """Refuse what would be read wrongly."""
    values = content.values
    types = [value for name, value in values.items() if name.endswith(".rope.scaling.type")]
    scaling = next((str(value) for value in types if value != "none"), "")
    if any(name.startswith(("rope_freqs", "rope_factors")) for name in content.tensors):
        scaling = scaling or "by a factor for each frequency"
    if scaling:
        raise ConfigError(
            f"{key}: {file} scales RoPE ({scaling}), which is not read from GGUF; {_advice(key)}"
        )
    kind = values.get("tokenizer.ggml.model")
    if kind != "gpt2" or content.rule not in SPLIT_RULES:
        raise ConfigError(
            f"{key}: {file} has a tokenizer of kind {kind}, {content.rule}; of GGUF's tokenizers "
            f"only gpt2 with {', '.join(SPLIT_RULES)} are read; {_advice(key)}"
        )


def _write_tokenizer(content: Content, folder: Path) -> None:
    """Write the tokenizer with the rule of its kind, and BOS as the file says."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    values = {name.removeprefix("tokenizer.ggml."): v for name, v in content.values.items()}
    tokens: list[str] = values["tokens"]
    merges = [tuple(merge.split(" ")) for merge in values["merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    for token, kind in zip(tokens, values["token_type"], strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            is_control = kind == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=is_control, normalized=False)])
    apply_rule(tokenizer, SPLIT_RULES[content.rule])
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    special = {
        f"{name}_token": tokens[values[f"{key}_token_id"]]
        for key, name in names.items()
        if f"{key}_token_id" in values
    }
    bos = special.get("bos_token") if values.get("add_bos_token") else None
    template = f"{bos} $A" if bos else "$A"
    tokenizer.post_processor = TemplateProcessing(
        single=template,
        pair=f"{template} $B",
        special_tokens=[(bos, vocabulary[bos])] if bos else [],
    )
    make: Any = PreTrainedTokenizerFast
    fast = make(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=values.get("tokenizer.chat_template"),
        **special,
    )
    fast.save_pretrained(folder)


def apply_rule(tokenizer: Any, rule: SplitRule) -> None:
    """Set how a byte-level BPE tokenizer (of the package tokenizers) prepares a text."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps: list[Any] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), "isolated"))
    own_pattern = rule.pattern is None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_pattern))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.model.ignore_merges = rule.ignores_merges
    tokenizer.normalizer = normalizers.NFC() if rule.normal_form == "NFC" else None


def _write_model(file: Path, folder: Path, key: str, *, weights: bool) -> None:
    """Write the configuration and, if asked for, the weights in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
        if not weights:
            with torch.device("meta"):
                config.architectures = [
                    type(loader.from_config(config, trust_remote_code=False)).__name__
                ]
            write_config(config, folder)
            return
        model, report = loader.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"{key}: {file} cannot be read ({error}); {_advice(key)}") from error
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise MismatchError(
            f"{file}: {len(wrong)} tensors are missing or unknown, first {wrong[0]}"
        )
    # The weights are plain numbers now; transformers does not save what it read as quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    write_config(model.config, folder)
