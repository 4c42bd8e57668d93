"""Relations of queries, keys and values against a dense reference in float64, with gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longred.objectives.relations import attention_distill_loss, relation_kl


def dense_kl(
    student: Tensor, teacher: Tensor, documents: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Compute the KL in loops over rows, heads and queries."""
    rows, heads, length, dim = student.shape
    result = []
    for row in range(rows):
        for head in range(heads):
            for place in range(length):
                seen = [
                    other
                    for other in range(place + 1)
                    if (window is None or place - other < window)
                    and (
                        documents is None
                        or (documents[row, other : place + 1] == documents[row, place]).all()
                    )
                ]
                log_p, log_q = (
                    (x[row, head, seen] @ x[row, head, place] / dim**0.5).log_softmax(0)
                    for x in (teacher, student)
                )
                result.append((log_p.exp() * (log_p - log_q)).sum())
    return torch.stack(result).view(rows, heads, length)


def pair(heads: int = 3, length: int = 29, dim: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    teacher = 2 * torch.randn(2, heads, length, dim, dtype=torch.float64)
    return teacher + 0.3 * torch.randn_like(teacher), teacher


def packed(length: int) -> Tensor:
    """Documents that begin inside tiles and at their edges, and an id that is used twice."""
    documents = torch.zeros(2, length, dtype=torch.int32)
    documents[0, 8:] = 1
    documents[0, 11:20] = 2
    documents[0, 20:] = 1
    documents[1, 16:] = 5
    return documents


@pytest.mark.parametrize("block", [1, 4, 8, 512])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 5, 8, 13])
def test_values_and_gradients_equal_the_dense_reference(
    block: int, masked: bool, window: int | None
) -> None:
    student, teacher = pair()
    documents = packed(29) if masked else None
    ours, dense = student.clone().requires_grad_(), student.clone().requires_grad_()
    kl = relation_kl(
        ours, teacher, document_ids_BT=documents, sliding_window=window, block_tokens=block
    )
    expected = dense_kl(dense, teacher, documents, window)
    torch.testing.assert_close(kl, expected, atol=1e-12, rtol=1e-10)
    row_weights = torch.rand_like(kl)
    (kl * row_weights).sum().backward()
    (expected * row_weights).sum().backward()
    torch.testing.assert_close(ours.grad, dense.grad, atol=1e-12, rtol=1e-10)


def test_gradient_passes_gradcheck() -> None:
    student, teacher = pair(heads=1, length=7, dim=3)
    assert torch.autograd.gradcheck(
        lambda x: relation_kl(x, teacher, block_tokens=3), (student.requires_grad_(),)
    )


def test_large_logits_do_not_overflow() -> None:
    student, teacher = pair()
    kl = relation_kl(60 * student, 60 * teacher, block_tokens=8)
    torch.testing.assert_close(kl, dense_kl(60 * student, 60 * teacher), atol=1e-9, rtol=1e-9)


def layer(query: Tensor, key: Tensor, value: Tensor) -> SimpleNamespace:
    return SimpleNamespace(query_BHTd=query, key_BhTd=key, value_BhTd=value, sliding_window=None)


def test_loss_is_the_mean_over_layers_of_three_relations_each_over_its_own_heads() -> None:
    queries, keys, values = pair(4), pair(2), pair(2)
    keys = tuple(key.flip(2) for key in keys)
    student, teacher = (layer(queries[i], keys[i], values[i]) for i in range(2))
    other = layer(queries[0] * 1.1, keys[0], values[0])
    loss = attention_distill_loss({0: student, 2: other}, {2: teacher, 0: teacher})
    expected = sum(
        dense_kl(*both).mean()
        for both in (queries, keys, values, (queries[0] * 1.1, queries[1]), keys, values)
    )
    assert loss.item() == pytest.approx(expected.item() / 2, rel=1e-12)
    with pytest.raises(ValueError, match="same layers"):
        attention_distill_loss({0: student}, {1: teacher})


def test_as_published_all_relations_are_divided_by_the_query_heads() -> None:
    torch.manual_seed(0)
    sizes = (4, 2, 2)
    student, teacher = (
        [torch.randn(2, heads, 9, 6, dtype=torch.float64) for heads in sizes] for _ in range(2)
    )
    found = attention_distill_loss({0: layer(*student)}, {0: layer(*teacher)}, heads="query")
    sums = [dense_kl(a, b).sum() for a, b in zip(student, teacher, strict=True)]
    assert float(found) == pytest.approx(float(sum(sums)) / (2 * 4 * 9), rel=1e-12)
    own = attention_distill_loss({0: layer(*student)}, {0: layer(*teacher)})
    assert float(own) > float(found)
    ungrouped = [x.repeat_interleave(4 // x.shape[1], dim=1) for x in student]
    others = [x.repeat_interleave(4 // x.shape[1], dim=1) for x in teacher]
    both = [
        attention_distill_loss({0: layer(*ungrouped)}, {0: layer(*others)}, heads=heads)
        for heads in ("own", "query")
    ]
    assert both[0] == both[1], "without grouping the two are one"


def test_equal_models_have_no_loss_and_no_gradient() -> None:
    state = torch.randn(1, 2, 50, 16)
    student = state.clone().requires_grad_()
    kl = relation_kl(student, state, block_tokens=16)
    kl.sum().backward()
    assert kl.abs().max().item() == 0.0
    assert student.grad is not None
    assert student.grad.abs().max().item() == 0.0


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.numel())
        return result


def test_no_matrix_of_tokens_by_tokens_exists_in_either_direction() -> None:
    student = torch.randn(1, 2, 640, 4).requires_grad_()
    with _LargestTensor() as seen:
        relation_kl(student, torch.randn(1, 2, 640, 4), block_tokens=32).sum().backward()
    assert seen.largest <= max(2 * 640 * 4, 2 * 32 * 32)
