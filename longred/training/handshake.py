"""The handshake: can this model be trained exactly? Answered on its first layers, in seconds.

The model's own code is the reference: its eager attention under an explicit mask, its logits, its
loss, its modules unfused. What training puts in their place is compared with that on the first
decoder layers that hold every kind of layer the model has, with their real weights, in float32:

    dropout      two passes in training mode give the same bits
    loss         own logits and loss against hidden states and the chunked cross-entropy
    attention    own eager attention against the registered one: ordinary, skipped, packed rows
    layers       layer by layer, as profiling runs them
    kernels      what attention in bfloat16 loses, against the model's own
    RoPE         which layers rotate, and which of them the extension changes
    gradients    fused and checkpointed layers; every parameter that requires a gradient gets one
    export       the written configuration reads back

Shapes: B rows, T tokens, D hidden dimension, V vocabulary.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from longred.attention.backends import Backend, choose_backend, needs_of
from longred.attention.function import (
    ATTENTION_NAME,
    Capture,
    Captured,
    guard,
    use_backend,
)
from longred.cost.machine import memory_of
from longred.errors import LongredError, PreflightError
from longred.method.rope import is_dropped
from longred.models.architectures import (
    extended_layers,
    head_input,
    logit_softcap,
    main_rope,
    rope_layers,
)
from longred.models.first_layers import (
    bytes_needed,
    empty_model,
    load_first_layers,
    num_first_layers,
    shortened,
)
from longred.models.folder import weight_files
from longred.models.load import hidden_states, load_config, run_layers
from longred.objectives.cross_entropy import long_loss
from longred.progress import size
from longred.training.export_check import read_back
from longred.training.layers.activations import checkpoint_activations
from longred.training.layers.fused import fuse
from longred.training.layers.masters import hold_no_copies
from longred.training.own_code import (
    Reference,
    Row,
    compared_gradients,
    make_rows,
    own_gradients,
    own_results,
    rotated_queries,
)
from longred.training.weight_files import sharing_problem

log = logging.getLogger(__name__)

MEMORY = "memory for the first layers"
"""The only finding of a model whose first layers do not fit the device."""

NUM_TOKENS = 256
TOLERANCE = 1e-3
"""Largest difference, as a share of the spread of the values; float32 leaves about 1e-5."""

ROUTED_TOKENS = 0.02
"""Share of tokens that may differ in a model with experts: rounding can choose another expert."""

ROUTED_GRADIENTS = 0.1
"""Likewise, the largest difference of a gradient as a share of its norm."""

ROUNDING = 2.0
"""Largest error of kernels in bfloat16, as a multiple of the error of eager attention."""


class Finding(NamedTuple):
    """The result of one comparison.

    Attributes:
        part: what was compared.
        text: the result, in words and figures.
        passed: whether training computes what the model's own code does; None if that could not be
            compared.
    """

    part: str
    text: str
    passed: bool | None


def require(
    original: Path,
    extended: PreTrainedConfig,
    *,
    device: torch.device,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    start: Path | None = None,
) -> None:
    """Refuse a model that training would not compute exactly; see `shake_hands`.

    Args:
        original, extended, device, backend, dtype: as there.
        start: folder of the model whose weights start the training; None for the original.

    Raises:
        PreflightError: a comparison failed; the message names the first one.
        MismatchError: the weights do not fit the configuration.
        ConfigError: the model is not built of the parts that training works on.
    """
    settings: dict[str, Any] = {"device": device, "backend": backend, "dtype": dtype}
    weights = weight_files(start or original, original=original)[0].parent
    for finding in shake_hands(original, extended, weights=weights, **settings):
        if finding.part == MEMORY:
            log.warning(
                "%s: training was not compared with the model's own code: %s; run `longred check "
                "MODEL` on a machine with more memory",
                original,
                finding.text,
            )
        if finding.passed is False:
            raise PreflightError(
                f"{original}: this model cannot be trained exactly: {finding.part}: "
                f"{finding.text}; `longred check MODEL` shows all comparisons"
            )


def shake_hands(
    folder: Path,
    extended: PreTrainedConfig,
    *,
    device: torch.device,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    weights: Path | None = None,
) -> Iterator[Finding]:
    """Compare what training computes with the model's own code; yield one finding a comparison.

    Args:
        folder: the original model.
        extended: its configuration with rescaled RoPE.
        device: where the first layers run.
        backend: of attention.
        dtype: in which the model is trained; with bfloat16 its kernels are compared, too.
        weights: folder of the weights, if they are not the original's.

    Raises:
        MismatchError: the weights do not fit the configuration.
        ConfigError: the model is not built of the parts that training works on.
    """
    config = load_config(folder)
    num_layers = num_first_layers(config)
    config, extended_first = (shortened(each, num_layers) for each in (config, extended))
    needed, there = bytes_needed(config, device), memory_of(device)
    if needed > there:
        yield Finding(MEMORY, f"{size(needed)} are needed and there are {size(there)}", None)
        return
    kernels = choose_backend(backend, needs_of(config, device, torch.float32))
    model = load_first_layers(weights or weight_files(folder)[0].parent, config).to(device)
    window = int(extended.max_position_embeddings)
    rows = make_rows(int(config.vocab_size), NUM_TOKENS, window, device)
    try:
        own = {name: own_results(model, row) for name, row in rows.items()}
        gradients = own_gradients(model, rows["packed"])
        rounding = None
        if dtype != torch.float32:
            with torch.autocast(device.type, dtype=dtype):
                rounding = own_results(model, rows["packed"]).hidden_BTD
    except Exception as error:
        yield Finding("own code", _described(error), False)
        return
    yield guarded("dropout", lambda: _dropout(model, rows["ordinary"]))
    model.config._attn_implementation = ATTENTION_NAME
    guard(model, kernels)
    yield guarded("loss", lambda: _loss(model, rows["ordinary"], own["ordinary"]))
    for name, row in rows.items():
        compare = functools.partial(_attention, model, row, own[name])
        yield guarded(f"attention, {name} rows", compare)
    yield guarded("layers", lambda: _layers(model, rows["ordinary"], own["ordinary"]))
    if rounding is not None:
        lowest = choose_backend(backend, needs_of(config, device, dtype))
        compare = functools.partial(
            _kernels, model, rows["packed"], own["packed"], rounding, lowest, dtype
        )
        yield guarded(f"attention, {str(dtype).removeprefix('torch.')}", compare)
        use_backend(model, kernels)
    yield guarded("RoPE", lambda: _rope(model, extended_first, rows["ordinary"]))
    yield guarded("gradients", lambda: _gradients(model, rows["packed"], gradients))
    yield guarded("export", lambda: read_back(extended))
    if problem := sharing_problem(folder):
        yield Finding("weights of several processes", problem, None)


def guarded(part: str, compare: Callable[[], tuple[str, bool | None]]) -> Finding:
    """Return a comparison as a finding; a crash of the model's or our code is one that failed."""
    try:
        return Finding(part, *compare())
    except Exception as error:
        return Finding(part, _described(error), False)


def _described(error: Exception) -> str:
    """Return an error in one line; the traceback of a crash is logged for debugging."""
    if isinstance(error, LongredError):
        return str(error)
    log.debug("the handshake caught a crash", exc_info=error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"crashes: {type(error).__name__}: {first}"


@torch.no_grad()
def _dropout(model: Any, row: Row) -> tuple[str, bool]:
    model.train()
    try:
        first, second = (
            model(input_ids=row.input_ids_BT, use_cache=False).logits for _ in range(2)
        )
    finally:
        model.eval()
    if torch.equal(first, second):
        return "off: two passes in training mode are equal", True
    rates = [
        name
        for name, value in vars(model.config).items()
        if value and ("dropout" in name or name.endswith(("_pdrop", "jitter_noise")))
    ]
    named = ", ".join(rates) or "dropout"
    return f"passes in training mode differ by chance; set {named} to 0 in config.json", False


@torch.no_grad()
def _loss(model: Any, row: Row, own: Reference) -> tuple[str, bool]:
    weight, cap = model.get_output_embeddings().weight, logit_softcap(model.config)
    hidden_BTD = head_input(model.config, own.hidden_BTD)
    logits_BTV = F.linear(hidden_BTD, weight)
    if cap is not None:
        logits_BTV = cap * torch.tanh(logits_BTV / cap)
    ours = float(long_loss(hidden_BTD, weight, row.input_ids_BT, logit_softcap=cap))
    theirs = own.loss if own.loss is not None else float("nan")
    far = float((logits_BTV - own.logits_BTV).abs().max() / own.logits_BTV.std())
    text = (
        f"cross-entropy {ours:.6f}, the model's own {theirs:.6f}; logits differ by up to "
        f"{far:.1e} of their spread"
    )
    if far > TOLERANCE:
        # Names what is missing if logits are scaled: the factor that fits best.
        scale = float((logits_BTV * own.logits_BTV).sum() / logits_BTV.square().sum())
        text += f", the model's own are {scale:.4g} times as large"
    return text, far <= TOLERANCE and abs(ours - theirs) <= TOLERANCE * max(1.0, theirs)


def _hidden(model: Any, row: Row, capture: Capture | None = None) -> Tensor:
    last = len(model.base_model.layers)
    return hidden_states(
        model,
        row.input_ids_BT,
        layers=[last],
        position_ids_BT=row.position_ids_BT,
        document_ids_BT=row.document_ids_BT,
        capture=capture,
    )[last]


@torch.no_grad()
def _attention(model: Any, row: Row, own: Reference) -> tuple[str, bool]:
    seen: list[Captured] = []
    hidden_BTD = _hidden(model, row, seen.append)
    num_layers = len(model.base_model.layers)
    if len(seen) != num_layers:
        # The model's own attention then runs on, and knows nothing of documents.
        text = (
            f"{num_layers - len(seen)} of {num_layers} layers do not call transformers' attention "
            "interface, through which training sets its own attention"
        )
        return text, False
    return _compared(model, hidden_BTD, own.hidden_BTD)


@torch.no_grad()
def _kernels(
    model: Any,
    row: Row,
    own: Reference,
    rounding_BTD: Tensor,
    kernels: Backend,
    dtype: torch.dtype,
) -> tuple[str, bool]:
    """Compare the kernels of training with float32; eager attention shows what rounding costs."""
    use_backend(model, kernels)
    with torch.autocast(row.input_ids_BT.device.type, dtype=dtype):
        ours_BTD = _hidden(model, row)
    ours, theirs = (
        float((x.float() - own.hidden_BTD).norm() / own.hidden_BTD.norm())
        for x in (ours_BTD, rounding_BTD)
    )
    text = (
        f"backend {kernels.name} is {ours:.1e} of the states' norm from float32, the model's own "
        f"eager attention {theirs:.1e}"
    )
    return text, ours <= ROUNDING * theirs + TOLERANCE


@torch.no_grad()
def _layers(model: Any, row: Row, own: Reference) -> tuple[str, bool]:
    *_, last = run_layers(model, row.input_ids_BT)
    return _compared(model, last.hidden_BTD, own.hidden_BTD)


def _compared(model: Any, ours_BTD: Tensor, theirs_BTD: Tensor) -> tuple[str, bool]:
    far_BT = (ours_BTD - theirs_BTD).abs().amax(dim=-1) / theirs_BTD.std()
    # Not a number is far, too.
    num_far = int((~(far_BT <= TOLERANCE)).sum())
    text = f"hidden states differ by up to {float(far_BT.max()):.1e} of their spread"
    if num_far:
        text += f", on {num_far} of {NUM_TOKENS} tokens by more than {TOLERANCE:g}"
    return text, num_far <= (ROUTED_TOKENS * NUM_TOKENS if _has_experts(model) else 0)


def _has_experts(model: Any) -> bool:
    return any(weight.ndim == 3 for weight in model.base_model.layers.parameters())


def _rope(model: Any, extended: PreTrainedConfig, row: Row) -> tuple[str, bool]:
    """Compare which layers rotate, and which the extension changes, with the configuration."""
    after = empty_model(extended, attention=ATTENTION_NAME)
    after.load_state_dict(model.state_dict(), strict=False, assign=True)
    after.tie_weights()
    after = after.to(model.device).eval()
    end = max(1, int(extended.max_position_embeddings) - NUM_TOKENS)
    near, moved, far = (
        rotated_queries(model, row._replace(position_ids_BT=row.position_ids_BT + start))
        for start in (0, 7, end)
    )
    beyond = rotated_queries(after, row._replace(position_ids_BT=row.position_ids_BT + end))
    # A student without RoPE stands for its original where no teacher is needed.
    is_off = is_dropped(main_rope(model.config))
    is_extended = extended.rope_parameters != model.config.rope_parameters
    for did, one, other, wanted in (
        ("rotate queries", near, moved, [] if is_off else rope_layers(model.config)),
        (
            "are changed by the extension",
            far,
            beyond,
            extended_layers(model.config) if is_extended else [],
        ),
    ):
        found = [layer for layer in sorted(one) if not torch.equal(one[layer], other[layer])]
        if found != wanted:
            return f"layers {found} {did}; by the configuration, {wanted} should", False
    kept = len(near) - len(wanted)
    return f"of {len(near)} layers {len(wanted)} are rescaled and {kept} left as they are", True


def _gradients(model: Any, row: Row, own: dict[str, Tensor]) -> tuple[str, bool]:
    """Compare the gradients of fused layers, checkpointed in both ways, with the model's own."""
    fuse(model)
    hold_no_copies(model)
    far: dict[str, float] = {}
    for kind in ("selective", "full"):
        checkpoint_activations(model, kind)
        model.train()
        loss = long_loss(
            head_input(model.config, _hidden(model, row)),
            model.get_output_embeddings().weight,
            row.input_ids_BT,
            document_ids_BT=row.document_ids_BT,
            logit_softcap=logit_softcap(model.config),
        )
        with compared_gradients(model, own) as found:
            torch.autograd.backward(loss)
        model.eval()
        without = [n for n, w in model.named_parameters() if w.requires_grad and n not in found]
        if without:
            return f"{len(without)} parameters get no gradient, first {without[0]}", False
        far = {name: max(far.get(name, 0.0), found[name]) for name in own}
    worst = max(far, key=lambda name: far[name])
    text = f"of {len(far)} weights differ by up to {far[worst]:.1e} of their norm ({worst})"
    return text, far[worst] <= (ROUTED_GRADIENTS if _has_experts(model) else TOLERANCE)
