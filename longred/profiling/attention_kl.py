"""How far the student's attention is from the teacher's, query by query, in memory linear in T.

One pass over blocks of keys keeps, for every query, the largest teacher and student logit m and
m', the sums l = Σ exp(t - m) and l' = Σ exp(s - m') and a = Σ exp(t - m) ((t - m) - (s - m')),
rescaled whenever a maximum grows; then KL = a / l - log l + log l'. Logits are compared after the
maxima are taken off, so that large ones cost no digits.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), g = H / h, d head dimension,
P pairs of a row and a key head, Q queries of a block, K keys of a block.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from longred.profiling.problem import Problem, Statistics

BLOCK_QUERIES = 128
BLOCK_KEYS = 256
TILE_LOGITS = {"cpu": 2**18, "cuda": 2**25}
"""Logits of one model held at once, by kind of device: what fits a core's cache, or fills a GPU."""

FAR = -1e30
"""Stands for the logit of a key that is not seen: its probability is 0 and, the same in both
models, its difference is 0 and not NaN."""


def attention_kl(
    teacher_query_BHTd: Tensor,
    teacher_key_BhTd: Tensor,
    student_query_BHTd: Tensor,
    student_key_BhTd: Tensor,
    *,
    scale: float | None = None,
    document_ids_BT: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return KL(teacher's attention || student's attention) of every query, in nats.

    A query sees the keys up to its own, inside its document and the sliding window; blocks that no
    query of a block sees are skipped. Memory grows with T, not with its square. Computed in fp32
    (fp64 for fp64 inputs); rounding can leave a KL near 0 slightly negative. Gradients flow to the
    student's tensors only, and cost no more memory. On CUDA a Triton kernel does the work where
    Triton is installed, on tensor cores and for fp32 inputs as exactly as fp32 products would;
    everywhere else, for fp64 and with a soft cap it is plain torch.

    Args:
        teacher_query_BHTd: queries after RoPE.
        teacher_key_BhTd: keys after RoPE, not repeated.
        student_query_BHTd: the same of the student.
        student_key_BhTd: the same of the student.
        scale: of the logits; 1/sqrt(d) if None.
        document_ids_BT: ids whose runs are documents.
        sliding_window: number of latest keys that a query sees, its own included.
        softcap: logits x become softcap * tanh(x / softcap), after scaling.

    Returns:
        kl_BHT.

    Raises:
        ValueError: the shapes do not fit, or no key would be seen; on CUDA also where the tensors
            differ in type or device.
    """
    tensors = (teacher_query_BHTd, teacher_key_BhTd, student_query_BHTd, student_key_BhTd)
    _check(tensors, document_ids_BT, sliding_window)
    scale = teacher_query_BHTd.shape[-1] ** -0.5 if scale is None else scale
    first_BT = first_seen(teacher_query_BHTd, document_ids_BT, sliding_window)
    values = (*tensors, scale, first_BT, softcap)
    kl_BHT: Tensor = _AttentionKL.apply(*values)  # type: ignore[no-untyped-call]
    return kl_BHT


def first_seen(
    query_BHTd: Tensor, document_ids_BT: Tensor | None, sliding_window: int | None
) -> Tensor | None:
    """Return the first key that each query sees, int32[B, T]; None where all see from key 0 on."""
    rows, _, length, _ = query_BHTd.shape
    is_wide = sliding_window is None or sliding_window >= length
    if document_ids_BT is None and is_wide:
        return None
    place_T = torch.arange(length, device=query_BHTd.device, dtype=torch.int32)
    first_BT = torch.zeros_like(place_T).expand(rows, -1)
    if document_ids_BT is not None:
        ids_BT = document_ids_BT.to(query_BHTd.device)
        starts_BT = ids_BT.diff(dim=1, prepend=ids_BT[:, :1]) != 0
        first_BT = torch.where(starts_BT, place_T, 0).cummax(dim=1).values
    if sliding_window is not None:
        first_BT = torch.maximum(first_BT, place_T - (sliding_window - 1))
    return first_BT.to(torch.int32).contiguous()


def _check(
    tensors: tuple[Tensor, ...], document_ids_BT: Tensor | None, sliding_window: int | None
) -> None:
    teacher_query, teacher_key, student_query, student_key = (tuple(x.shape) for x in tensors)
    fits = len(teacher_query) == len(teacher_key) == 4 and (
        student_query == teacher_query
        and student_key == teacher_key
        and teacher_key[0] == teacher_query[0]
        and teacher_key[2:] == teacher_query[2:]
        and teacher_query[1] % teacher_key[1] == 0
    )
    if not fits:
        raise ValueError(
            "queries and keys of teacher and student do not fit: "
            f"{teacher_query}, {teacher_key} and {student_query}, {student_key}"
        )
    rows, _, length, _ = teacher_query
    if document_ids_BT is not None and document_ids_BT.shape != (rows, length):
        raise ValueError(
            f"document_ids_BT has shape {tuple(document_ids_BT.shape)}, the queries need "
            f"{(rows, length)}"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be 1 or more, got {sliding_window}")


class _AttentionKL(torch.autograd.Function):
    """KL with a backward pass that computes the logits again, block by block."""

    @staticmethod
    def forward(ctx: Any, *values: Any) -> Tensor:
        problem = Problem(*values)
        statistics = _backend(problem)(problem)
        ctx.save_for_backward(*values[:4], problem.first_BT, *statistics[1:])
        ctx.scale, ctx.softcap = problem.scale, problem.softcap
        return statistics.kl_BHT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHT: Tensor) -> tuple[Tensor | None, ...]:
        t_query, t_key, s_query, s_key, first_BT, teacher_lse_BHT, student_lse_BHT = (
            ctx.saved_tensors
        )
        problem = Problem(t_query, t_key, s_query, s_key, ctx.scale, first_BT, ctx.softcap)
        query, key = _student_gradients(problem, teacher_lse_BHT, student_lse_BHT, grad_BHT)
        return None, None, query, key, None, None, None


Backend = Callable[[Problem], Statistics]


def _backend(problem: Problem) -> Backend:
    """Return what computes the statistics on this device for this type."""
    query_BHTd = problem.teacher_query_BHTd
    if query_BHTd.is_cuda and query_BHTd.dtype != torch.float64 and problem.softcap is None:
        try:
            from longred.profiling.attention_kl_triton import statistics
        except ImportError:
            return blockwise
        return statistics
    return blockwise


class _Blocks:
    """Blocks of queries with their keys, for a few pairs of a row and a key head at once."""

    def __init__(self, problem: Problem, pairs: slice) -> None:
        query_BHTd, key_BhTd = problem.teacher_query_BHTd, problem.teacher_key_BhTd
        rows, num_heads, self.length, dim = query_BHTd.shape
        heads = key_BhTd.shape[1]
        self.group = num_heads // heads
        self.precise = torch.promote_types(query_BHTd.dtype, torch.float32)
        self.scale, self.softcap = problem.scale, problem.softcap
        self.queries_PgTd = [
            x.reshape(rows * heads, self.group, self.length, dim)[pairs]
            for x in (problem.teacher_query_BHTd, problem.student_query_BHTd)
        ]
        self.keys_PTd = [
            x.reshape(rows * heads, self.length, dim)[pairs].to(self.precise)
            for x in (problem.teacher_key_BhTd, problem.student_key_BhTd)
        ]
        self.place_T = torch.arange(self.length, device=query_BHTd.device)
        self.first_PT: Tensor | None = None
        if problem.first_BT is not None:
            self.first_PT = problem.first_BT.repeat_interleave(heads, dim=0)[pairs]
            self.first_on_cpu_PT = self.first_PT.cpu()
        self.size = self.keys_PTd[0].shape[0] * self.group

    def of_queries(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of every block of queries."""
        for start in range(0, self.length, BLOCK_QUERIES):
            yield start, min(start + BLOCK_QUERIES, self.length)

    def of_keys(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (low, high) of the blocks of keys that these queries see, their own first.

        A query sees its own key, so that maxima are real logits from the first block on.
        """
        yield start, end
        limit = 0 if self.first_PT is None else int(self.first_on_cpu_PT[:, start:end].min())
        for high in range(start, limit, -BLOCK_KEYS):
            yield max(limit, high - BLOCK_KEYS), high

    def queries(self, start: int, end: int) -> list[Tensor]:
        """Return a block of scaled queries of both models, the heads of a group one below another.

        [P, g Q, d]: one product with the keys of the group, none repeated.
        """
        return [
            (x[:, :, start:end].to(self.precise) * self.scale).flatten(1, 2)
            for x in self.queries_PgTd
        ]

    def logits(self, query_PRd: Tensor, model: int, low: int, high: int, out: Tensor) -> Tensor:
        """Write one model's logits [P, g Q, K] into the start of a flat buffer."""
        rows = query_PRd.shape[1]
        tile = out[: query_PRd.shape[0] * rows * (high - low)].view(-1, rows, high - low)
        torch.bmm(query_PRd, self.keys_PTd[model][:, low:high].mT, out=tile)
        return tile if self.softcap is None else tile.div_(self.softcap).tanh_().mul_(self.softcap)

    def hide(self, logits: tuple[Tensor, ...], start: int, end: int, low: int, high: int) -> None:
        """Move the logits of keys that are not seen far away, in place."""
        is_past = high <= start
        if is_past and (
            self.first_PT is None or int(self.first_on_cpu_PT[:, start:end].max()) <= low
        ):
            return
        key_K = self.place_T[low:high]
        unseen_PQK = (key_K > self.place_T[start:end, None])[None]
        if self.first_PT is not None:
            unseen_PQK = unseen_PQK | (key_K < self.first_PT[:, start:end, None])
        for tile_PRK in logits:
            tile_PRK.view(-1, self.group, end - start, high - low).masked_fill_(
                unseen_PQK[:, None], FAR
            )


def _pairs(problem: Problem) -> Iterator[slice]:
    """Yield as many pairs of a row and a key head as make a tile of the size for this device."""
    query_BHTd, key_BhTd = problem.teacher_query_BHTd, problem.teacher_key_BhTd
    num_pairs, group = key_BhTd.shape[0] * key_BhTd.shape[1], query_BHTd.shape[1]
    group //= key_BhTd.shape[1]
    limit = TILE_LOGITS.get(query_BHTd.device.type, TILE_LOGITS["cpu"])
    step = max(1, limit // (group * BLOCK_QUERIES * BLOCK_KEYS))
    for first in range(0, num_pairs, step):
        yield slice(first, min(first + step, num_pairs))


def blockwise(problem: Problem) -> Statistics:
    """Compute the statistics with plain torch, on any device."""
    query_BHTd = problem.teacher_query_BHTd
    parts = [_of_pairs(_Blocks(problem, pairs)) for pairs in _pairs(problem)]
    return Statistics(*(torch.cat(x).view(query_BHTd.shape[:3]) for x in zip(*parts, strict=True)))


def _of_pairs(blocks: _Blocks) -> list[Tensor]:
    shape = (blocks.size // blocks.group, blocks.group, blocks.length)
    results_PgT = [blocks.keys_PTd[0].new_empty(shape) for _ in Statistics._fields]
    size = blocks.size * BLOCK_QUERIES * max(BLOCK_KEYS, BLOCK_QUERIES)
    buffers = [blocks.keys_PTd[0].new_empty(size) for _ in range(3)]
    for start, end in blocks.of_queries():
        teacher_PRd, student_PRd = blocks.queries(start, end)
        online = _Online()
        for low, high in blocks.of_keys(start, end):
            t = blocks.logits(teacher_PRd, 0, low, high, buffers[0])
            s = blocks.logits(student_PRd, 1, low, high, buffers[1])
            blocks.hide((t, s), start, end, low, high)
            online.add(t, s, buffers[2][: t.numel()].view(t.shape))
        for result, value_PR in zip(results_PgT, online.end(), strict=True):
            result[:, :, start:end] = value_PR.view(result.shape[0], blocks.group, end - start)
    return results_PgT


class _Online:
    """The running statistics of a block of queries, over blocks of keys in any order."""

    def __init__(self) -> None:
        self.m_t = self.m_s = self.l_t = self.l_s = self.a = torch.empty(0)

    def add(self, t_PRK: Tensor, s_PRK: Tensor, difference_PRK: Tensor) -> None:
        """Take in a block of logits; all three tensors are used up."""
        m_t, m_s = t_PRK.amax(-1, keepdim=True), s_PRK.amax(-1, keepdim=True)
        is_first = not self.m_t.numel()
        if not is_first:
            m_t, m_s = torch.maximum(m_t, self.m_t), torch.maximum(m_s, self.m_s)
        torch.sub(t_PRK.sub_(m_t), s_PRK.sub_(m_s), out=difference_PRK)
        l_t = t_PRK.exp_().sum(-1, keepdim=True)
        l_s = s_PRK.exp_().sum(-1, keepdim=True)
        a = difference_PRK.mul_(t_PRK).sum(-1, keepdim=True)
        if not is_first:
            grown_t, grown_s = m_t - self.m_t, m_s - self.m_s
            shrunk = (-grown_t).exp()
            a += shrunk * (self.a + self.l_t * (grown_s - grown_t))
            l_t += shrunk * self.l_t
            l_s += (-grown_s).exp() * self.l_s
        self.m_t, self.m_s, self.l_t, self.l_s, self.a = m_t, m_s, l_t, l_s, a

    def end(self) -> Statistics:
        """Return the statistics [P, g Q]."""
        log_t, log_s = self.l_t.log(), self.l_s.log()
        values = (self.a / self.l_t - log_t + log_s, self.m_t + log_t, self.m_s + log_s)
        return Statistics(*(value.squeeze(-1) for value in values))


def _student_gradients(
    problem: Problem, teacher_lse_BHT: Tensor, student_lse_BHT: Tensor, grad_BHT: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the student's queries and keys: dS = (p_s - p_t) dKL."""
    query_BHTd, key_BhTd = problem.student_query_BHTd, problem.student_key_BhTd
    queries, keys = [], []
    for pairs in _pairs(problem):
        blocks = _Blocks(problem, pairs)
        shape = (-1, blocks.group, blocks.length)
        per_query = [x.reshape(shape)[pairs] for x in (teacher_lse_BHT, student_lse_BHT, grad_BHT)]
        query_PgTd, key_PTd = _gradients_of_pairs(blocks, *per_query)
        queries.append(query_PgTd)
        keys.append(key_PTd)
    return (
        torch.cat(queries).view(query_BHTd.shape).to(query_BHTd.dtype),
        torch.cat(keys).view(key_BhTd.shape).to(key_BhTd.dtype),
    )


def _gradients_of_pairs(
    blocks: _Blocks, teacher_lse_PgT: Tensor, student_lse_PgT: Tensor, grad_PgT: Tensor
) -> tuple[Tensor, Tensor]:
    grad_key_PTd = torch.zeros_like(blocks.keys_PTd[1])
    grad_query_PgTd = torch.zeros_like(blocks.queries_PgTd[1], dtype=blocks.precise)
    size = blocks.size * BLOCK_QUERIES * max(BLOCK_KEYS, BLOCK_QUERIES)
    buffers = [blocks.keys_PTd[0].new_empty(size) for _ in range(2)]
    for start, end in blocks.of_queries():
        teacher_PRd, student_PRd = blocks.queries(start, end)
        lse_t, lse_s, grad = (
            x[:, :, start:end].flatten(1)[..., None].to(blocks.precise)
            for x in (teacher_lse_PgT, student_lse_PgT, grad_PgT)
        )
        grad_query_PRd = torch.zeros_like(student_PRd)
        for low, high in blocks.of_keys(start, end):
            t = blocks.logits(teacher_PRd, 0, low, high, buffers[0])
            s = blocks.logits(student_PRd, 1, low, high, buffers[1])
            blocks.hide((t, s), start, end, low, high)
            slope = None if blocks.softcap is None else 1 - (s / blocks.softcap).square()
            grad_logits_PRK = s.sub_(lse_s).exp_().sub_(t.sub_(lse_t).exp_()).mul_(grad)
            if slope is not None:
                # Of an unseen key it is a huge number that meets a gradient of exactly 0.
                grad_logits_PRK.mul_(slope)
            grad_query_PRd.baddbmm_(grad_logits_PRK, blocks.keys_PTd[1][:, low:high])
            grad_key_PTd[:, low:high].baddbmm_(grad_logits_PRK.mT, student_PRd)
        grad_query_PgTd[:, :, start:end] = grad_query_PRd.view(
            -1, blocks.group, end - start, grad_query_PRd.shape[-1]
        )
    # The student's blocks of queries were scaled already; the gradient of the keys has its scale.
    return grad_query_PgTd.mul_(blocks.scale), grad_key_PTd
