"""Fused norms, RoPE and gated MLPs: transformers' results, fewer bytes, no extra products."""

import copy
import functools
import shutil
from collections.abc import Callable

import pytest
import torch
from operator_counts import LiveBytes, OperatorCalls
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GraniteConfig,
    HeliumConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from longred.attention import function as attention
from longred.models.load import hidden_states
from longred.training.layers import compiling, fused, gated_mlp
from longred.training.layers.activations import CHECKPOINTING, checkpoint_activations
from longred.training.layers.compiling import compiled
from longred.training.layers.fused import fuse
from longred.training.layers.masters import hold_no_copies, weight_gradient
from longred.training.layers.mlp_tiles import tile_mlps

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, mlp_bias=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "phi3": Phi3Config(**SHAPE),
    "phi3 in part": Phi3Config(
        **SHAPE,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    ),
    "olmo2": Olmo2Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=16),
    "smollm3": SmolLM3Config(**SHAPE),
    "glm4": Glm4Config(**SHAPE, head_dim=16),
    "olmo3": Olmo3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE, head_dim=16),
    "helium": HeliumConfig(**SHAPE, head_dim=16),
    "starcoder2": Starcoder2Config(**SHAPE),
    "cohere": CohereConfig(**SHAPE),
    "granite": GraniteConfig(**SHAPE, residual_multiplier=0.5),
    "qwen3-moe": Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64
    ),
}
TOKENS = torch.randint(2, 64, (2, 40), generator=torch.Generator().manual_seed(0))
POSITIONS = (torch.arange(40) + torch.where(torch.arange(40) < 20, 0, 100)).expand(2, -1)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable float32 attention on a CPU's short rows, which reads RoPE's output unrounded."""
    monkeypatch.setattr("longred.attention.sdpa._is_slow_in_bf16", lambda value: False)


def build(family: str, kind: str = "none", *, is_fused: bool, tile: int = 0) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(0)
    config = copy.deepcopy(FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="longred")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    attention.guard(model)
    if is_fused:
        fuse(model)
    hold_no_copies(model)
    tile_mlps(model, tile)
    checkpoint_activations(model, kind)
    return model.train()


def run(model: PreTrainedModel, *, half: bool) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
        states = hidden_states(model, TOKENS, layers=[1, 2], position_ids_BT=POSITIONS)
    (states[1].float().square().sum() + states[2].float().abs().sum()).backward()
    return states, {n: w.grad for n, w in model.named_parameters() if w.grad is not None}


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    assert found.keys() == exact.keys()
    difference = sum((found[n].double() - exact[n].double()).square().sum() for n in exact)
    return float((difference / sum(g.double().square().sum() for g in exact.values())).sqrt())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [False, True])
def test_states_are_those_of_transformers_to_the_last_bit(
    family: str, half: bool, as_on_a_gpu: None
) -> None:
    expected, _ = run(build(family, is_fused=False), half=half)
    found, _ = run(build(family, is_fused=True), half=half)
    for layer, state in expected.items():
        assert found[layer].dtype == state.dtype
        if half and family == "gemma2":
            # Soft-capped attention runs in float32 and reads RoPE's output before it is rounded.
            assert error({"": found[layer]}, {"": state}) < 1e-2
        else:
            assert torch.equal(found[layer], state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "tile"), [("none", 0), ("selective", 32), ("full", 0)])
def test_gradients_are_those_of_transformers(
    family: str, kind: str, tile: int, as_on_a_gpu: None
) -> None:
    _, plain = run(build(family, is_fused=False), half=False)
    _, found = run(build(family, kind, is_fused=True, tile=tile), half=False)
    # The three gradients of a residual are summed in another order.
    assert error(found, plain) < 1e-6
    # Both differ from float32 by their rounding errors.
    _, plain_half = run(build(family, is_fused=False), half=True)
    _, half = run(build(family, kind, is_fused=True, tile=tile), half=True)
    assert error(half, plain) < 1.15 * error(plain_half, plain)


@pytest.mark.parametrize("name", ["normalise", "turn", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_each_function_are_those_of_its_formula(name: str, dtype: torch.dtype) -> None:
    """Against autograd of the same formula in float64, from the rounded inputs."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 24).to(dtype), torch.randn(7, 24).to(dtype)
    grad = torch.randn(7, 24).to(dtype)
    cases: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]] = {
        "normalise": (
            lambda x, y: y[0] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
            lambda: fused.normalise_backward(
                grad,
                x,
                y[0],
                torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6),
                fused.Formula(adds_one=False, rounds_first=False),
            ),
        ),
        "turn": (
            lambda x, y: x * y + torch.cat((-x[:, 12:], x[:, :12]), -1) * y.flip(-1),
            lambda: (fused.turn_backward(grad, y.float(), y.flip(-1).float(), dtype),),
        ),
        "gated": (
            lambda x, y: torch.nn.functional.silu(x) * y,
            lambda: gated_mlp.gated_backward(grad, x, y, "silu")[:2],
        ),
    }
    formula, backward = cases[name]
    exact = [x.double().requires_grad_(), y.double().requires_grad_()]
    expected = torch.autograd.grad(formula(*exact), exact, grad.double())
    expected = (expected[0], expected[1][0] if name == "normalise" else expected[1])
    for got, wanted in zip(backward(), expected, strict=False):
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        assert ((got.double() - wanted).norm() / wanted.norm()).item() < tolerance


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_nothing_is_computed_more_often(kind: str) -> None:
    with OperatorCalls() as calls:
        run(build("qwen2", kind, is_fused=True), half=True)
    layers = SHAPE["num_hidden_layers"]
    again = 0 if kind == "none" else 1
    # A recomputed layer repeats all products but the last.
    products = calls.counts["aten::mm"] + calls.counts["aten::addmm"]
    assert products == (7 + 6 * again + 14) * layers
    assert calls.counts["aten::silu"] == (2 + 0 * again) * layers


def test_a_held_layer_holds_what_the_docstring_says(as_on_a_gpu: None) -> None:
    held = {}
    for is_fused in (False, True):
        model = build("llama", is_fused=is_fused)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            states = hidden_states(model, TOKENS, layers=[2])
            held[is_fused] = live.now
        assert states[2].requires_grad
    tokens, layers = TOKENS.numel(), SHAPE["num_hidden_layers"]
    size, inner, keys = SHAPE["hidden_size"], SHAPE["intermediate_size"], 32
    norms = 2 * (4 * size + 2 * size + 4)
    attended = 2 * (size + 2 * keys + size) + 4 * SHAPE["num_attention_heads"]
    layer = tokens * (norms + attended + 2 * 2 * inner)
    outside = tokens * (8 * size + 4 + 8 + 2 * 4 * 16)
    assert held[True] == pytest.approx(layers * layer + outside, rel=0.06)
    assert held[True] < 0.62 * held[False]


def test_attention_that_is_not_known_is_left_to_transformers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    def forward(self: object, *args: object, **kwargs: object) -> None:
        """A version of transformers that applies RoPE elsewhere."""

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    build("llama", is_fused=True)
    assert (
        "LlamaAttention does not rotate halves by apply_rotary_pos_emb: RoPE is not fused"
        in caplog.text
    )


def test_the_modules_of_transformers_stay_as_they_are() -> None:
    from transformers.models.llama import modeling_llama

    before = modeling_llama.apply_rotary_pos_emb
    build("llama", is_fused=True)
    assert modeling_llama.apply_rotary_pos_emb is before
    assert modeling_llama.LlamaAttention.forward.__globals__[fused.ROPE_NAME] is before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_functions_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, grads = run(build("llama", "selective", is_fused=True), half=True)
    torch._dynamo.reset()
    made: dict[Callable[..., object], Callable[..., object]] = {}
    monkeypatch.setattr(
        compiling, "fastest", lambda function, _: made.setdefault(function, compiled(function))
    )
    found, found_grads = run(build("llama", "selective", is_fused=True), half=True)
    assert len(made) == 6
    # A few values round to the other neighbouring bfloat16 number.
    names = {str(layer): state.detach() for layer, state in expected.items()}
    assert error({str(layer): found[layer].detach() for layer in found}, names) < 1e-2
    assert error(found_grads, grads) < 2e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_tokens", [8192, 1000])
def test_compiled_kernels_on_a_gpu(num_tokens: int) -> None:
    """Kernels at the sizes of a real model, forward and backward, against float64 formulas."""
    torch.manual_seed(0)
    draw = functools.partial(torch.randn, device="cuda")
    formula, angles = fused.Formula(adds_one=False, rounds_first=True), draw(1, 1, num_tokens, 128)
    x, weight, grad = draw(num_tokens, 4096), 1 + 0.1 * draw(4096), draw(num_tokens, 4096)
    scale = torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5)
    heads = draw(1, num_tokens, 8, 128).bfloat16().transpose(1, 2)
    gate, up, out = (draw(num_tokens, 14336).bfloat16() for _ in range(3))
    bf16, fp32 = torch.bfloat16, torch.float32
    calls = {
        fused.normalise: (x, weight, 1e-5, formula, bf16),
        fused.normalise_backward: (grad.bfloat16(), x, weight, scale.float(), formula),
        fused.turn: (heads, angles.cos(), angles.sin(), bf16),
        fused.turn_backward: (heads, angles.cos(), angles.sin(), bf16),
        gated_mlp.gated: (gate, up, "silu"),
        gated_mlp.gated_backward: (out, gate, up, "silu"),
    }
    unit = x.double() * scale
    back = grad.bfloat16().double() * weight.double()
    hidden_grad = back * scale - unit * scale * (back * unit).mean(-1, keepdim=True)
    cos, sin, turned = angles.cos().double(), angles.sin().double(), heads.double()
    half = torch.cat((-turned[..., 64:], turned[..., :64]), -1)
    first, second = (turned * sin).chunk(2, -1)
    g, u, o = gate.double(), up.double(), out.double()
    slope = g.sigmoid() * (1 + g * (1 - g.sigmoid()))
    active = g * g.sigmoid()
    expected = {
        fused.normalise: (unit * weight.double(), scale),
        fused.normalise_backward: (hidden_grad, (grad.bfloat16().double() * unit).sum(0)),
        fused.turn: (turned * cos + half * sin,),
        fused.turn_backward: (turned * cos + torch.cat((second, -first), -1),),
        gated_mlp.gated: (active * u,),
        gated_mlp.gated_backward: (o * u * slope, o * active, active * u),
    }
    for function, arguments in calls.items():
        found = compiled(function)(*arguments)
        found = found if isinstance(found, tuple) else (found,)
        for got, wanted in zip(found, expected[function], strict=True):
            tolerance = 1e-5 if got.dtype == fp32 else 8e-3
            error_ = ((got.double() - wanted).norm() / wanted.norm()).item()
            assert error_ < tolerance, (function.__name__, error_)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gradients_of_weights_are_not_rounded_on_a_gpu() -> None:
    torch.manual_seed(0)
    grad, input_ = (torch.randn(4096, n, device="cuda").bfloat16() for n in (512, 768))
    found = weight_gradient(grad, input_, torch.empty(512, 768, device="cuda"))
    exact = grad.double().T @ input_.double()
    assert found.dtype == torch.float32
    assert ((found.double() - exact).norm() / exact.norm()).item() < 1e-5
