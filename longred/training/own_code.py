"""A model's own code as the reference of the handshake: eager attention under explicit masks.

Masks are the model's own, taken from an ordinary row, so that windows are what its code makes of
them; documents are added. Positions never decide what a token sees.

Shapes: B rows, T tokens, D hidden dimension, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.attention.function import Captured
from longred.errors import ConfigError


class Row(NamedTuple):
    """A row of tokens.

    Attributes:
        name: ordinary, skipped or packed.
        input_ids_BT: tokens.
        position_ids_BT: their positions.
        document_ids_BT: runs of equal ids are documents; None for one document.
    """

    name: str
    input_ids_BT: Tensor
    position_ids_BT: Tensor
    document_ids_BT: Tensor | None = None


class Reference(NamedTuple):
    """What the model's own code computes for a row; the loss for ordinary rows only."""

    hidden_BTD: Tensor
    logits_BTV: Tensor
    loss: float | None


def make_rows(
    vocab_size: int, num_tokens: int, window: int, device: torch.device
) -> dict[str, Row]:
    """Return random tokens at ordinary and at skipped positions, and packed at skipped ones.

    Args:
        vocab_size: number of token ids.
        num_tokens: of each row.
        window: the positions skip up to its end.
        device: of the tensors.
    """
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(vocab_size, (1, num_tokens), generator=generator).to(device)
    index_T, third = torch.arange(num_tokens, device=device), num_tokens // 3
    skips_T = torch.zeros_like(index_T)
    skips_T[third : 2 * third] = max(0, window // 2 - num_tokens)
    skips_T[2 * third :] = max(0, window - num_tokens)
    # The second document does not end where positions skip.
    documents_T = (index_T >= third).long() + (index_T >= 2 * third + 11).long()
    skipped_BT = (index_T + skips_T)[None]
    rows = (
        Row("ordinary", tokens_BT, index_T[None]),
        Row("skipped", tokens_BT, skipped_BT),
        Row("packed", tokens_BT, skipped_BT, documents_T[None]),
    )
    return {row.name: row for row in rows}


@torch.no_grad()
def own_results(model: Any, row: Row) -> Reference:
    """Return the model's own hidden states and logits, and for ordinary rows its own loss."""
    if row.name != "ordinary":
        # transformers would take every skip for the start of a document.
        output = _own_forward(model, row, _masks(model, row))
        return Reference(output.hidden_states[-1], output.logits, None)
    output = model(
        input_ids=row.input_ids_BT,
        labels=row.input_ids_BT,
        output_hidden_states=True,
        use_cache=False,
    )
    return Reference(output.hidden_states[-1], output.logits, float(output.loss))


def own_gradients(model: Any, row: Row) -> dict[str, Tensor]:
    """Return the gradients of a row's cross-entropy in training mode, by name, on the host."""
    model.train()
    masks = _masks(model, row)
    logits_BTV = _own_forward(model, row, masks).logits
    target_BT = row.input_ids_BT[:, 1:]
    if row.document_ids_BT is not None:
        ends_BT = row.document_ids_BT[:, 1:] != row.document_ids_BT[:, :-1]
        target_BT = target_BT.masked_fill(ends_BT, -100)
    torch.autograd.backward(F.cross_entropy(logits_BTV[0, :-1].float(), target_BT[0]))
    return take_gradients(model)


def take_gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradients of a model's parameters on the host; it then has none, and evaluates."""
    weights = model.named_parameters()
    found = {name: w.grad.cpu() for name, w in weights if w.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return found


@contextmanager
def compared_gradients(model: Any, own: dict[str, Tensor]) -> Iterator[dict[str, float]]:
    """Compare the gradients of one backward pass with the model's own, and free each at once.

    A second set of gradients would cost as much memory as the weights.

    Args:
        model: has no gradients; afterwards it has none either.
        own: gradients by name, on the host.

    Yields:
        The size of each difference as a share of the gradient's norm, filled by the backward pass.
    """
    # A gradient that is almost nothing is compared with the largest one.
    least = 1e-4 * max(float(grad.norm()) for grad in own.values())
    far: dict[str, float] = {}

    def compare(name: str, weight: Tensor) -> None:
        grad, weight.grad = weight.grad, None
        if grad is None:
            return
        reference = own.get(name, grad).to(grad.device)
        far[name] = float((grad - reference).norm()) / max(float(reference.norm()), least)

    with ExitStack() as stack:
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                hook = functools.partial(compare, name)
                stack.callback(weight.register_post_accumulate_grad_hook(hook).remove)
        yield far


@torch.no_grad()
def rotated_queries(model: Any, row: Row) -> dict[int, Tensor]:
    """Return each layer's queries and keys after RoPE, every layer reading the embedded input.

    Args:
        model: with attention `longred`.
        row: tokens and positions.
    """
    found: dict[int, Tensor] = {}
    embedded: list[Any] = []

    def keep(captured: Captured) -> None:
        parts = (captured.query_BHTd.flatten(), captured.key_BhTd.flatten())
        found[captured.layer] = torch.cat(parts)

    def replace(_module: Any, args: Any, kwargs: Any) -> Any:
        embedded.append(args[0])
        return (embedded[0], *args[1:]), kwargs

    base = model.base_model
    with ExitStack() as stack:
        _hook(stack, base.layers, replace)
        base(
            input_ids=row.input_ids_BT,
            position_ids=row.position_ids_BT,
            use_cache=False,
            capture=keep,
        )
    return found


def _own_forward(model: Any, row: Row, masks: Iterable[Tensor]) -> Any:
    """Run the model's own forward pass, each layer under a given mask."""
    rest = iter(masks)

    def replace(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": next(rest)}

    with ExitStack() as stack:
        _hook(stack, model.base_model.layers, replace)
        return model(
            input_ids=row.input_ids_BT,
            position_ids=row.position_ids_BT,
            output_hidden_states=True,
            use_cache=False,
        )


def _masks(model: Any, row: Row) -> list[Tensor]:
    """Return each layer's own mask of an ordinary row, with the documents of `row`.

    Raises:
        ConfigError: a layer gets no mask of queries and keys, as linear attention.
    """
    found: list[Tensor] = []

    def keep(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["attention_mask"])

    with ExitStack() as stack, torch.no_grad():
        _hook(stack, model.base_model.layers, keep)
        model.base_model(input_ids=row.input_ids_BT, use_cache=False)
    for layer, mask in enumerate(found):
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            raise ConfigError(
                f"model.path: decoder layer {layer} computes something else than softmax attention "
                "under a causal mask; this works on layers with softmax attention only"
            )
    if row.document_ids_BT is None:
        return found
    documents_BT = row.document_ids_BT
    foreign_B1TT = (documents_BT[:, :, None] != documents_BT[:, None, :])[:, None]
    return [
        mask & ~foreign_B1TT
        if mask.dtype == torch.bool
        else mask.masked_fill(foreign_B1TT, torch.finfo(mask.dtype).min)
        for mask in found
    ]


def _hook(stack: ExitStack, layers: Iterable[Any], hook: Callable[..., Any]) -> None:
    """Call a function before each layer until the stack closes."""
    for layer in layers:
        stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
