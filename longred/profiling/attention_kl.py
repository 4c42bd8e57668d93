"""KL between the attention of student and teacher, query by query, in memory linear in T.

One pass over blocks of keys keeps for every query the largest teacher and student logit m and m',
the sums l = Σ exp(t - m) and l' = Σ exp(s - m') and a = Σ exp(t - m) ((t - m) - (s - m')), rescaled
when a maximum grows; then KL = a / l - log l + log l'. Logits are compared after their maxima are
subtracted, so that large logits cost no digits. `longred.objectives.relations` streams the KL of
the training loss in its own loop and says why.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), g = H / h, d head dimension,
P pairs of a row and a key head, Q queries of a block, R = g Q, K keys of a block.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longred.objectives.relations import first_seen
from longred.profiling.problem import Problem, Statistics

BLOCK_QUERIES = 128
BLOCK_KEYS = 256
TILE_LOGITS = {"cpu": 2**18, "cuda": 2**25}
"""Logits of one model held at once, by device type: fits a core's cache, or fills a GPU."""

FAR = -1e30
"""Logit of an unseen key: its probability is 0, and its difference between models 0, not NaN."""


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

    A query sees the keys up to its own, inside its document and the sliding window; blocks of keys
    that no query of a block sees are skipped. Memory grows with T, not with T². Computed in fp32
    (fp64 for fp64 inputs); rounding can leave a KL near 0 slightly negative. Only the student's
    tensors get gradients, at no more memory. On CUDA a Triton kernel is used if Triton is
    installed: on tensor cores, and for fp32 inputs as accurate as fp32 products. Otherwise, for
    fp64 and with a soft cap it is plain torch.

    Args:
        teacher_query_BHTd: queries after RoPE.
        teacher_key_BhTd: keys after RoPE, not repeated.
        student_query_BHTd: the student's queries.
        student_key_BhTd: the student's keys.
        scale: factor of the logits; 1/sqrt(d) if None.
        document_ids_BT: each run of equal ids is one document.
        sliding_window: number of latest keys that a query sees, its own included.
        softcap: logits x become softcap * tanh(x / softcap), after scaling.

    Returns:
        kl_BHT.

    Raises:
        ValueError: the shapes do not fit, or no key would be seen; with the Triton kernel also if
            the tensors differ in dtype or device.
    """
    tensors = (teacher_query_BHTd, teacher_key_BhTd, student_query_BHTd, student_key_BhTd)
    _check(tensors, document_ids_BT, sliding_window)
    scale = teacher_query_BHTd.shape[-1] ** -0.5 if scale is None else scale
    first_BT = first_seen(teacher_query_BHTd, document_ids_BT, sliding_window)
    values = (*tensors, scale, first_BT, softcap)
    kl_BHT: Tensor = _AttentionKL.apply(*values)  # type: ignore[no-untyped-call]
    return kl_BHT


def _check(
    tensors: tuple[Tensor, ...], document_ids_BT: Tensor | None, sliding_window: int | None
) -> None:
    query, key, *student = (tuple(x.shape) for x in tensors)
    fits = student == [query, key] and len(query) == len(key) == 4
    if not fits or (key[0], *key[2:]) != (query[0], *query[2:]) or query[1] % key[1]:
        raise ValueError(
            "queries and keys of teacher and student do not fit: "
            f"{query}, {key} and {student[0]}, {student[1]}"
        )
    rows, _, length, _ = query
    if document_ids_BT is not None and document_ids_BT.shape != (rows, length):
        raise ValueError(
            f"document_ids_BT has shape {tuple(document_ids_BT.shape)}, the queries need "
            f"{(rows, length)}"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be 1 or more, got {sliding_window}")


class _AttentionKL(torch.autograd.Function):
    """KL with a backward pass that recomputes the logits block by block."""

    @staticmethod
    def forward(ctx: Any, *values: Any) -> Tensor:
        problem = Problem(*values)
        statistics = _statistics(problem)
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


def _statistics(problem: Problem) -> Statistics:
    """Compute the statistics with the fastest code for this device and dtype."""
    query_BHTd = problem.teacher_query_BHTd
    if query_BHTd.is_cuda and query_BHTd.dtype != torch.float64 and problem.softcap is None:
        try:
            from longred.profiling.attention_kl_triton import statistics
        except ImportError:
            pass
        else:
            return statistics(problem)
    parts = [_statistics_of_pairs(blocks) for blocks in _divide(problem)]
    return Statistics(*(torch.cat(x).view(query_BHTd.shape[:3]) for x in zip(*parts, strict=True)))


def _divide(problem: Problem) -> Iterator["_Blocks"]:
    """Divide a problem into as many (row, key head) pairs at once as fill a tile on this device."""
    query_BHTd, key_BhTd = problem.teacher_query_BHTd, problem.teacher_key_BhTd
    num_pairs = key_BhTd.shape[0] * key_BhTd.shape[1]
    group = query_BHTd.shape[1] // key_BhTd.shape[1]
    limit = TILE_LOGITS.get(query_BHTd.device.type, TILE_LOGITS["cpu"])
    step = max(1, limit // (group * BLOCK_QUERIES * BLOCK_KEYS))
    for first in range(0, num_pairs, step):
        yield _Blocks(problem, slice(first, min(first + step, num_pairs)))


class _Blocks:
    """Blocks of queries with their keys, for a few (row, key head) pairs at once."""

    def __init__(self, problem: Problem, pairs: slice) -> None:
        query_BHTd, key_BhTd = problem.teacher_query_BHTd, problem.teacher_key_BhTd
        rows, num_heads, self.length, dim = query_BHTd.shape
        heads = key_BhTd.shape[1]
        self.pairs, self.group = pairs, num_heads // heads
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
        self.index_T = torch.arange(self.length, device=query_BHTd.device)
        self.first_PT: Tensor | None = None
        if problem.first_BT is not None:
            self.first_PT = problem.first_BT.repeat_interleave(heads, dim=0)[pairs]
            self.first_on_cpu_PT = self.first_PT.cpu()
        self.buffers = [self.new_buffer() for _ in range(2)]

    def new_buffer(self) -> Tensor:
        """Return a flat buffer that is large enough for any tile [P, R, K]."""
        num_rows = self.keys_PTd[0].shape[0] * self.group * BLOCK_QUERIES
        return self.keys_PTd[0].new_empty(num_rows * max(BLOCK_KEYS, BLOCK_QUERIES))

    def of_queries(self) -> Iterator[tuple[int, int, list[Tensor]]]:
        """Yield start, end and both models' scaled queries [P, R, d] of every block of queries.

        The query heads of a key head are stacked: one product serves them all and repeats no key.
        """
        for start in range(0, self.length, BLOCK_QUERIES):
            end = min(start + BLOCK_QUERIES, self.length)
            blocks = (x[:, :, start:end].to(self.precise) for x in self.queries_PgTd)
            yield start, end, [(x_PgQd * self.scale).flatten(1, 2) for x_PgQd in blocks]

    def of_keys(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (low, high) of the blocks of keys that these queries see, their own first.

        A query sees its own key, so that maxima are real logits from the first block on.
        """
        yield start, end
        limit = 0 if self.first_PT is None else int(self.first_on_cpu_PT[:, start:end].min())
        for high in range(start, limit, -BLOCK_KEYS):
            yield max(limit, high - BLOCK_KEYS), high

    def logits(
        self, queries_PRd: list[Tensor], start: int, end: int
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield blocks of keys with the teacher's and student's logits [P, R, K].

        The logits are views of the buffers and may be overwritten.
        """
        for low, high in self.of_keys(start, end):
            tiles = []
            for query_PRd, key_PTd, buffer in zip(
                queries_PRd, self.keys_PTd, self.buffers, strict=True
            ):
                shape = (*query_PRd.shape[:2], high - low)
                tile_PRK = buffer[: math.prod(shape)].view(shape)
                torch.bmm(query_PRd, key_PTd[:, low:high].mT, out=tile_PRK)
                if self.softcap is not None:
                    tile_PRK.div_(self.softcap).tanh_().mul_(self.softcap)
                tiles.append(tile_PRK)
            self._hide(tiles, start, end, low, high)
            teacher_PRK, student_PRK = tiles
            yield slice(low, high), teacher_PRK, student_PRK

    def _hide(self, tiles: list[Tensor], start: int, end: int, low: int, high: int) -> None:
        """Set the logits of unseen keys to `FAR`, in place."""
        is_past = high <= start
        if is_past and (
            self.first_PT is None or int(self.first_on_cpu_PT[:, start:end].max()) <= low
        ):
            return
        key_K = self.index_T[low:high]
        unseen_PQK = (key_K > self.index_T[start:end, None])[None]
        if self.first_PT is not None:
            unseen_PQK = unseen_PQK | (key_K < self.first_PT[:, start:end, None])
        for tile_PRK in tiles:
            tile_PRK.view(-1, self.group, end - start, high - low).masked_fill_(
                unseen_PQK[:, None], FAR
            )


def _statistics_of_pairs(blocks: _Blocks) -> list[Tensor]:
    shape = (blocks.keys_PTd[0].shape[0], blocks.group, blocks.length)
    results_PgT = [blocks.keys_PTd[0].new_empty(shape) for _ in Statistics._fields]
    spare = blocks.new_buffer()
    for start, end, queries_PRd in blocks.of_queries():
        # Running maxima and sums: m, m', l, l' and a of the formula above.
        m_t = m_s = l_t = l_s = a = torch.empty(0)
        for _, t_PRK, s_PRK in blocks.logits(queries_PRd, start, end):
            is_first = not m_t.numel()
            new_t, new_s = t_PRK.amax(-1, keepdim=True), s_PRK.amax(-1, keepdim=True)
            if not is_first:
                new_t, new_s = torch.maximum(new_t, m_t), torch.maximum(new_s, m_s)
            difference_PRK = spare[: t_PRK.numel()].view(t_PRK.shape)
            torch.sub(t_PRK.sub_(new_t), s_PRK.sub_(new_s), out=difference_PRK)
            sum_t = t_PRK.exp_().sum(-1, keepdim=True)
            sum_s = s_PRK.exp_().sum(-1, keepdim=True)
            sum_a = difference_PRK.mul_(t_PRK).sum(-1, keepdim=True)
            if not is_first:
                grown_t, grown_s = new_t - m_t, new_s - m_s
                shrunk = (-grown_t).exp()
                sum_a += shrunk * (a + l_t * (grown_s - grown_t))
                sum_t += shrunk * l_t
                sum_s += (-grown_s).exp() * l_s
            m_t, m_s, l_t, l_s, a = new_t, new_s, sum_t, sum_s, sum_a
        log_t, log_s = l_t.log(), l_s.log()
        values = (a / l_t - log_t + log_s, m_t + log_t, m_s + log_s)
        for result_PgT, value in zip(results_PgT, values, strict=True):
            result_PgT[:, :, start:end] = value.view(*shape[:2], end - start)
    return results_PgT


def _student_gradients(
    problem: Problem, teacher_lse_BHT: Tensor, student_lse_BHT: Tensor, grad_BHT: Tensor
) -> list[Tensor]:
    """Return the gradients of the student's queries and keys: dS = (p_s - p_t) dKL."""
    parts = []
    for blocks in _divide(problem):
        shape = (-1, blocks.group, blocks.length)
        all_pairs = (teacher_lse_BHT, student_lse_BHT, grad_BHT)
        per_query_PgT = [x.reshape(shape)[blocks.pairs] for x in all_pairs]
        parts.append(_gradients_of_pairs(blocks, per_query_PgT))
    return [
        torch.cat(grads).view(x.shape).to(x.dtype)
        for grads, x in zip(zip(*parts, strict=True), problem[2:4], strict=True)
    ]


def _gradients_of_pairs(blocks: _Blocks, per_query_PgT: list[Tensor]) -> tuple[Tensor, Tensor]:
    student_key_PTd = blocks.keys_PTd[1]
    grad_key_PTd = torch.zeros_like(student_key_PTd)
    grad_query_PgTd = torch.zeros_like(blocks.queries_PgTd[1], dtype=blocks.precise)
    for start, end, queries_PRd in blocks.of_queries():
        lse_t, lse_s, grad = (
            x[:, :, start:end].flatten(1)[..., None].to(blocks.precise) for x in per_query_PgT
        )
        grad_query_PRd = torch.zeros_like(queries_PRd[1])
        for keys, t_PRK, s_PRK in blocks.logits(queries_PRd, start, end):
            slope = None if blocks.softcap is None else 1 - (s_PRK / blocks.softcap).square()
            grad_logits_PRK = s_PRK.sub_(lse_s).exp_().sub_(t_PRK.sub_(lse_t).exp_()).mul_(grad)
            if slope is not None:
                # The slope of an unseen key is huge; it meets a gradient of exactly 0.
                grad_logits_PRK.mul_(slope)
            grad_query_PRd.baddbmm_(grad_logits_PRK, student_key_PTd[:, keys])
            grad_key_PTd[:, keys].baddbmm_(grad_logits_PRK.mT, queries_PRd[1])
        grad_query_PgTd[:, :, start:end] = grad_query_PRd.view_as(grad_query_PgTd[:, :, start:end])
    # The blocks of queries were scaled already, so the gradient of the keys has its scale.
    return grad_query_PgTd.mul_(blocks.scale), grad_key_PTd
