"""GGUF files become the model that they were written from, or are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer

from longred.cli.resolve import commit_of, name_model
from longred.errors import ConfigError, LongredError, MismatchError, PreflightError
from longred.models.find import is_hub_name, resolve_model
from longred.models.gguf import SPLIT_RULES, apply_rule
from longred.models.load import load_model, load_tokenizer
from longred.store.artifacts import Store

TEXT = "def  f(x):\n    return 12345 + x2   # é  9\n\n\t'll <|bos|> 漢字"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def halves_apart(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key weight as llama.cpp stores them: pairs side by side."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def content_of(folder: Path) -> dict[str, Any]:
    """Return the fields and tensors of a Llama folder as llama.cpp's converter names them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(folder)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {*tokenizer.all_special_tokens}
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    fields = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.vocab_size": config.vocab_size,
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token, _ in vocabulary],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge) for merge in merges
        ],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": True,
    }
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = model.state_dict()
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for name, short in names.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            if short in ("attn_q", "attn_k"):
                heads = config.num_attention_heads
                heads = heads if short == "attn_q" else config.num_key_value_heads
                weight = halves_apart(weight, heads)
            tensors[f"blk.{layer}.{short}.weight"] = weight
    return {"architecture": "llama", "fields": fields, "tensors": tensors}


def write_gguf(path: Path, content: dict[str, Any], *, quantized: bool = False) -> Path:
    writer = gguf.GGUFWriter(path, content["architecture"])
    for name, value in content["fields"].items():
        kind = {str: "string", bool: "bool", int: "uint32", float: "float32", list: "array"}
        getattr(writer, f"add_{kind[type(value)]}")(name, value)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in content["tensors"].items():
        values = tensor.detach().numpy()
        if quantized and values.ndim == 2:
            writer.add_tensor(name, gguf.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_is_the_model_that_it_was_written_from(
    tiny_model_folder: Path, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", content_of(tiny_model_folder))
    capfd.readouterr()
    folder = resolve_model(str(file))
    assert folder.is_relative_to(home)
    tokens = torch.arange(40)[None] + 5
    with torch.no_grad():
        ours, original = (
            load_model(x)(input_ids=tokens).logits for x in (folder, tiny_model_folder)
        )
    assert torch.equal(ours, original)
    for text in (TEXT, "  1", "", " "):
        ours, original = (load_tokenizer(x)(text).input_ids for x in (folder, tiny_model_folder))
        assert ours == original
    assert capfd.readouterr() == ("", "")


def test_a_gguf_is_converted_once_and_its_small_files_without_its_weights(
    tiny_model_folder: Path, tmp_path: Path, home: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", content_of(tiny_model_folder), quantized=True)
    small = resolve_model(str(file), weights=False)
    assert not list(small.glob("*.safetensors"))
    assert json.loads((small / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    folder = resolve_model(str(file))
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert resolve_model(str(file), weights=False) == folder == resolve_model(str(file))
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    # Eight bits for each weight, 32 weights share a scale.
    wide, exact = (
        load_model(x).model.layers[1].mlp.up_proj.weight for x in (folder, tiny_model_folder)
    )
    assert 0 < float((wide - exact).abs().max()) < float(exact.abs().max()) / 127
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


def field(name: str, value: object) -> Change:
    return lambda content: content["fields"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (field("llama.rope.scaling.type", "yarn"), ConfigError, "scales RoPE (yarn)"),
        (
            lambda c: c["tensors"].__setitem__("rope_freqs.weight", torch.ones(8)),
            ConfigError,
            "a factor for each frequency",
        ),
        (field("tokenizer.ggml.model", "llama"), ConfigError, "tokenizer of kind llama"),
        (field("tokenizer.ggml.pre", "tekken"), ConfigError, "gpt2, tekken"),
        (field("general.name", "tiny"), None, ""),
        (
            lambda c: c["tensors"].pop("blk.1.ffn_up.weight"),
            MismatchError,
            "1 tensors are missing or unknown, first model.layers.1.mlp.up_proj.weight",
        ),
    ],
    ids=["yarn", "llama3", "sentencepiece", "rule", "whole", "tensor"],
)
def test_what_would_be_read_wrongly_is_refused(
    change: Change,
    error: type[LongredError] | None,
    words: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    home: Path,
) -> None:
    content = content_of(tiny_model_folder)
    change(content)
    file = write_gguf(tmp_path / "tiny.gguf", content)
    if error is None:
        assert resolve_model(str(file)).is_dir()
        return
    with pytest.raises(error) as caught:
        resolve_model(str(file))
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert not list((home / "longred" / "artifacts").glob("model-*"))


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("a.gguf", b"PK\x03\x04", PreflightError, "is not a GGUF file"),
        ("a.gguf", b"GGUF\x03\x00\x00\x00", PreflightError, "is damaged or incomplete"),
        ("a-00001-of-00003.gguf", b"GGUF", ConfigError, "one part of a split model"),
    ],
)
def test_damaged_files_are_refused(
    name: str, data: bytes, error: type[LongredError], words: str, tmp_path: Path, home: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=words):
        resolve_model(str(tmp_path / name), key="evaluation.perplexity.judge")


def test_a_missing_file_is_no_name_on_the_hub(tmp_path: Path, home: Path) -> None:
    assert not is_hub_name("models/tiny.gguf")
    with pytest.raises(PreflightError, match=r"model\.path: 'models/tiny\.gguf' is no .* file"):
        resolve_model("models/tiny.gguf")


def test_verbs_take_a_file_without_a_commit(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    model = name_model(Store(tmp_path / "store"), str(tmp_path / "tiny.gguf"))
    assert model.label == "tiny.gguf"
    assert commit_of(model) is None


def test_an_architecture_that_is_not_supported_is_refused(
    tiny_model_folder: Path, tmp_path: Path, home: Path
) -> None:
    content = content_of(tiny_model_folder)
    content["architecture"] = "wonder"
    file = write_gguf(tmp_path / "tiny.gguf", content)
    with pytest.raises(ConfigError, match=r"model\.path: .*wonder is not supported"):
        resolve_model(str(file))


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("gpt-2", ["It", "'s", "Ġ12345", "Ġ", "Ġ9", "!"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "9", "!"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "45", "Ġ", "Ġ", "9", "!"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġ", "9", "!"]),
    ],
)
def test_rules_split_as_the_tokenizers_that_they_are_named_after(
    rule: str, pieces: list[str]
) -> None:
    tokenizer = Tokenizer(models.BPE())
    apply_rule(tokenizer, SPLIT_RULES[rule])
    found = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345  9!")]
    assert found == pieces


def test_the_rule_of_qwen_is_that_of_transformers() -> None:
    from transformers.convert_slow_tokenizer import Qwen2Converter

    class Slow:
        encoder, bpe_ranks, add_prefix_space = {"a": 0}, {}, False

    theirs = Qwen2Converter(Slow()).converted({"a": 0}, [])
    ours = Tokenizer(models.BPE())
    apply_rule(ours, SPLIT_RULES["qwen2"])
    both = (json.loads(x.to_str()) for x in (theirs, ours))
    patterns = [
        [step["pattern"] for step in x["pre_tokenizer"]["pretokenizers"] if "pattern" in step]
        for x in both
    ]
    assert patterns[0] == patterns[1] != []


@pytest.mark.slow
def test_a_real_model_knows_the_capital_of_france(smollm2_gguf: Path, home: Path) -> None:
    folder = resolve_model(str(smollm2_gguf))
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    assert model.config.max_position_embeddings == 8192
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(tokens).logits[0, -1].argmax()) == " Paris"
    # Two spaces before a digit are one token: digits are split off before the merges.
    assert tokenizer("  1").input_ids == tokenizer.convert_tokens_to_ids(["ĠĠ", "1"])
