import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from longred.errors import ConfigError, LongredError, MismatchError, PreflightError
from longred.models.extension import write_extension
from longred.models.load import (
    choose_device,
    hidden_states,
    load_model,
    load_tokenizer,
    resolve_model,
    save_model,
)
from longred.models.vector_math import VECTOR_MATH, warm_up_vector_math
from longred.training.layers.activations import checkpoint_activations


@pytest.fixture
def model_copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def tokens(rows: int = 2, length: int = 30) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 400, (rows, length))


def test_hidden_states_are_those_of_transformers(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    with torch.no_grad():
        expected = model(tokens(), output_hidden_states=True, use_cache=False).hidden_states
        got = hidden_states(model, tokens(), layers=[1, 2, 3])
    assert list(got) == [1, 2, 3]
    for layer in (1, 2, 3):
        assert torch.equal(got[layer], expected[layer])
    norm = model.base_model.norm(got[3])
    assert not torch.allclose(norm, got[3]), "hidden state N is after the final norm already"
    assert torch.equal(model.lm_head(got[3]), model(tokens()).logits)


def test_hidden_states_gradients_with_and_without_checkpointing(tiny_model_folder: Path) -> None:
    gradients = []
    for kind in ("none", "full"):
        model = load_model(tiny_model_folder).train()
        checkpoint_activations(model, kind)
        states = hidden_states(model, tokens(), layers=[1, 3])
        (states[1].square().sum() + states[3].abs().sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert "lm_head.weight" not in gradients[-1]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_hidden_states_leave_no_hooks_and_run_no_head(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))
    for _ in range(2):
        hidden_states(model, tokens(), layers=[2])
    assert not any(layer._forward_hooks for layer in model.base_model.layers)


def test_hidden_states_bad_layers_and_attention(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    for layer in (0, 4, -1):
        with pytest.raises(ValueError, match=f"hidden state {layer} does not exist"):
            hidden_states(model, tokens(), layers=[layer])
    sdpa = load_model(tiny_model_folder, attention="sdpa")
    with pytest.raises(ValueError, match="attention='longred'"):
        hidden_states(sdpa, tokens(), layers=[3], document_ids_BT=torch.zeros_like(tokens()))


def test_two_loads_share_no_configuration(tiny_model_folder: Path) -> None:
    first, second = load_model(tiny_model_folder), load_model(tiny_model_folder, attention="sdpa")
    assert first.config is not second.config
    assert first.config._attn_implementation == "longred"


class _Calls(TorchDispatchMode):
    """Records the functions of tensors of one number, up to the first larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[tuple[str, torch.dtype]] = []
        self._is_over = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in VECTOR_MATH and args[0].numel() > 1:
            self._is_over = True
        elif name in VECTOR_MATH and not self._is_over:
            self.first.append((name, args[0].dtype))
        return found


def test_vector_math_is_warmed_up_before_a_model_computes(tiny_model_folder: Path) -> None:
    warm_up_vector_math.cache_clear()
    with _Calls() as calls:
        load_model(tiny_model_folder)(input_ids=tokens())
        torch.rand(1000).exp()
    assert set(calls.first) == {
        (name, dtype) for name in VECTOR_MATH for dtype in (torch.float32, torch.float64)
    }


def test_bf16_keeps_fp32_frequencies(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.base_model.rotary_emb.inv_freq.dtype == torch.float32


def test_extension_loads_the_original_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_extension(
        tiny_model_folder,
        tmp_path / "extended",
        digest="d",
        method="abf",
        original_window=64,
        target_window=256,
        rope_theta=1e6,
    )
    original, extended = load_model(tiny_model_folder), load_model(tmp_path / "extended")
    assert extended.config.max_position_embeddings == 256
    assert extended.config.rope_parameters["rope_theta"] == 1e6
    for name, weight in original.state_dict().items():
        assert torch.equal(extended.state_dict()[name], weight)
    assert not (tmp_path / "extended" / "model.safetensors").exists()
    edit(tmp_path / "extended" / "weights.json", lambda v: v.update(folder="/gone"))
    with pytest.raises(PreflightError, match="/gone is gone"):
        load_model(tmp_path / "extended")


def test_an_extension_may_start_from_a_student_and_moves_with_it(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    student = load_model(tiny_model_folder)
    with torch.no_grad():
        student.get_output_embeddings().weight.mul_(2)
    save_model(student, tiny_model_folder, artifacts / "training-1")
    write_extension(
        tiny_model_folder,
        artifacts / ".tmp-extension-2",
        digest="1",
        method="abf",
        original_window=64,
        target_window=256,
        start=artifacts / "training-1",
        rope_theta=80000.0,
    )
    (artifacts / ".tmp-extension-2").rename(artifacts / "extension-2")
    artifacts.rename(tmp_path / "moved")
    folder = tmp_path / "moved/extension-2"
    loaded = load_model(folder, original=tiny_model_folder)
    assert torch.equal(
        loaded.get_output_embeddings().weight, student.get_output_embeddings().weight
    )
    assert loaded.config.rope_parameters["rope_theta"] == 80000.0
    shutil.rmtree(tmp_path / "moved/training-1")
    with pytest.raises(PreflightError, match=r"the student .* is gone"):
        load_model(folder, original=tiny_model_folder)


def test_loading_and_saving_show_no_bars(
    tiny_model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_model(load_model(tiny_model_folder), tiny_model_folder, tmp_path / "saved")
    assert "it/s" not in capfd.readouterr().err


def test_saved_model_round_trips_in_both_forms(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_folder)
    model.config.rope_parameters = {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0}
    model.config.max_position_embeddings = 256
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    saved = tmp_path / "saved"
    save_model(model, tiny_model_folder, saved)
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert values["rope_theta"] == 5e4
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert values["rope_parameters"] == {
        "rope_type": "linear",
        "rope_theta": 5e4,
        "factor": 4.0,
    }
    assert values["max_position_embeddings"] == 256
    assert isinstance(values["max_position_embeddings"], int)
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert "longred" not in json.dumps(values)
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 256
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    ids = [load_tokenizer(f)("x = {1: 23}")["input_ids"] for f in (tiny_model_folder, saved)]
    assert ids[0] == ids[1]
    again = load_model(resolve_model(str(tmp_path / "saved")))
    assert again.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    # A second save also updates the legacy keys rope_theta and rope_scaling.
    again.config.rope_parameters = {"rope_type": "default", "rope_theta": 2e5}
    save_model(again, tiny_model_folder, tmp_path / "twice")
    twice = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert (twice["rope_theta"], twice["rope_scaling"]) == (2e5, None)
    last = load_model(tmp_path / "twice")
    assert last.config.rope_parameters == {"rope_type": "default", "rope_theta": 2e5}


def test_tied_weights_round_trip(model_copy: Path, tmp_path: Path) -> None:
    edit(model_copy / "config.json", lambda v: v.update(tie_word_embeddings=True))
    tensors = load_file(model_copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, model_copy / "model.safetensors", metadata={"format": "pt"})
    model = load_model(resolve_model(str(model_copy)))
    save_model(model, model_copy, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_control_tokens_in_a_text_are_text(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    ids = tokenizer("a <|eos|> b <|bos|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids) == "a <|eos|> b <|bos|>"
    batch = tokenizer(["x<|bos|>", "y"], add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id not in batch[0]


def test_demo_and_local_folders_resolve(tiny_model_folder: Path) -> None:
    assert resolve_model(str(tiny_model_folder)) == tiny_model_folder.resolve()


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def missing_shard(folder: Path) -> None:
    remove_weights(folder)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def code(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(auto_map={"AutoModel": "evil.Model"}))


def tokenizer_code(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda v: v.update(auto_map={"AutoTokenizer": ["e.T"]}))


def gpt(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(architectures=["GPT2LMHeadModel"]))


def quantized(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(quantization_config={"quant_method": "x"}))


def adapters(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def dynamic(folder: Path) -> None:
    rope = {"type": "dynamic", "factor": 4.0}
    edit(folder / "config.json", lambda v: v.update(rope_scaling=rope))


def multimodal_rope(folder: Path) -> None:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    edit(folder / "config.json", lambda v: v.update(rope_parameters=rope))


def unknown_rope(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v["rope_parameters"].update(rope_type="proportional"))


def small_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(vocab_size=500))


def large_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(vocab_size=32000))


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove_weights, PreflightError, "has no weights"),
        (pickle_only, ConfigError, "pickled"),
        (truncate, PreflightError, "cannot be read as safetensors"),
        (missing_shard, PreflightError, "model-00001-of-00002.safetensors"),
        (code, ConfigError, "auto_map"),
        (tokenizer_code, ConfigError, "auto_map"),
        (gpt, ConfigError, "GPT2LMHeadModel is not supported; give"),
        (quantized, ConfigError, "quantized"),
        (adapters, ConfigError, r"adapter_config\.json: transformers would add these adapters"),
        (no_config, PreflightError, "is missing"),
        (broken_config, PreflightError, "cannot be read as JSON"),
        (list_config, PreflightError, "must hold a JSON object"),
        (no_tokenizer, PreflightError, r"tokenizer\.json is missing"),
        (dynamic, ConfigError, "dynamic takes its frequencies from the length"),
        (multimodal_rope, ConfigError, "RoPE of type mrope"),
        (unknown_rope, ConfigError, "RoPE of type proportional is not supported; supported: def"),
        (small_vocabulary, ConfigError, "has 512 token ids and the model's vocab_size is 500"),
        (large_vocabulary, ConfigError, "has 512 token ids and the model's vocab_size is 32000"),
        (no_vocabulary, PreflightError, "holds no vocabulary"),
    ],
)
def test_unusable_folders_are_refused(
    model_copy: Path,
    damage: Callable[[Path], None],
    error: type[LongredError],
    message: str,
) -> None:
    damage(model_copy)
    with pytest.raises(error, match=message):
        resolve_model(str(model_copy))


def test_models_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PreflightError, match=r"model\.path: '/no/such/model' is no folder"):
        resolve_model("/no/such/model")
    with pytest.raises(ConfigError, match=r"model\.revision"):
        resolve_model("someone/model")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PreflightError, match=r"someone/model at .* cannot be fetched"):
        resolve_model("someone/model", "0" * 40)


def test_missing_weights_are_not_made_up(model_copy: Path) -> None:
    tensors = load_file(model_copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(model_copy)


def test_weights_of_another_shape(model_copy: Path) -> None:
    edit(model_copy / "config.json", lambda v: v.update(intermediate_size=128))
    with pytest.raises(MismatchError, match="do not fit"):
        load_model(model_copy)


def test_a_broken_tokenizer_is_named(model_copy: Path) -> None:
    (model_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(PreflightError, match="tokenizer"):
        load_tokenizer(model_copy)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="'tpu'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(PreflightError, match="no GPU"):
            choose_device("cuda")
