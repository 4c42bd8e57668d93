"""The statistics of `attention_kl` as one Triton kernel: a block of queries a program, one pass.

The online sums are those of `longred.profiling.attention_kl`, in powers of two and in fp32 whatever
the inputs are. Imported only where Triton is installed and the tensors are on a GPU.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), d head dimension; in the kernel
Q queries and K keys of a block, D the head dimension filled up to a power of two.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longred.profiling.attention_kl import Problem, Statistics

TUNING_TOKENS = 4096
"""Configurations are timed on this many tokens at most: at 128K a single launch takes seconds."""

CONFIGS = [
    triton.Config({"BLOCK_Q": queries, "BLOCK_K": keys}, num_warps=warps, num_stages=stages)
    for queries, keys, warps, stages in (
        (128, 128, 8, 2),
        (128, 64, 8, 3),
        (128, 64, 8, 2),
        (128, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 64, 4, 2),
        (64, 32, 4, 2),
        (32, 32, 4, 1),
    )
]
"""BLOCK_K divides BLOCK_Q. The last ones are for fp32 and large heads; what does not fit a GPU's
shared memory is dropped by the tuner."""


@triton.jit
def _logits(query_QD, key_ptr, stride, key_K, dim_D, length, log2_scale, D: tl.constexpr,
            IS_PADDED: tl.constexpr, IS_INSIDE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Return one model's logits [Q, K] in powers of two."""
    address_DK = key_ptr + key_K.to(tl.int64)[None, :] * stride + dim_D[:, None]
    if IS_INSIDE and not IS_PADDED:
        key_DK = tl.load(address_DK)
    else:
        known_DK = (key_K < length)[None, :] & (dim_D < D)[:, None]
        key_DK = tl.load(address_DK, mask=known_DK, other=0.0)
    return tl.dot(query_QD, key_DK, input_precision=PRECISION) * log2_scale


@triton.jit
def _add(t_QK, s_QK, m_t, m_s, l_t, l_s, a):
    """Take a block of logits into the running statistics."""
    new_t = tl.maximum(m_t, tl.max(t_QK, 1))
    new_s = tl.maximum(m_s, tl.max(s_QK, 1))
    t_QK = t_QK - new_t[:, None]
    s_QK = s_QK - new_s[:, None]
    p_QK = tl.exp2(t_QK)
    shrunk = tl.exp2(m_t - new_t)
    a = tl.sum(p_QK * (t_QK - s_QK), 1) + shrunk * (a + l_t * ((new_s - m_s) - (new_t - m_t)))
    l_t = tl.sum(p_QK, 1) + shrunk * l_t
    l_s = tl.sum(tl.exp2(s_QK), 1) + tl.exp2(m_s - new_s) * l_s
    return new_t, new_s, l_t, l_s, a


@triton.jit
def _kernel(teacher_query_ptr, teacher_key_ptr, student_query_ptr, student_key_ptr, first_ptr,
            kl_ptr, teacher_lse_ptr, student_lse_ptr, length, num_heads, group, log2_scale,
            tq_row, tq_head, tq_token, tk_row, tk_head, tk_token,
            sq_row, sq_head, sq_token, sk_row, sk_head, sk_token,
            D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_FIRST: tl.constexpr,
            PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    # The last blocks see the most keys; they start first, so that none is left over at the end.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tl.program_id(1) // num_heads).to(tl.int64)
    head = (tl.program_id(1) % num_heads).to(tl.int64)
    IS_PADDED: tl.constexpr = D != BLOCK_D
    start = block * BLOCK_Q
    query_Q = start + tl.arange(0, BLOCK_Q)
    dim_D = tl.arange(0, BLOCK_D)
    known_QD = (query_Q < length)[:, None] & (dim_D < D)[None, :]
    place_Q = query_Q.to(tl.int64)[:, None]
    address_QD = teacher_query_ptr + row * tq_row + head * tq_head + place_Q * tq_token
    teacher_QD = tl.load(address_QD + dim_D[None, :], mask=known_QD, other=0.0)
    address_QD = student_query_ptr + row * sq_row + head * sq_head + place_Q * sq_token
    student_QD = tl.load(address_QD + dim_D[None, :], mask=known_QD, other=0.0)
    teacher_key_ptr += row * tk_row + (head // group) * tk_head
    student_key_ptr += row * sk_row + (head // group) * sk_head

    low = 0
    if HAS_FIRST:
        known_Q = query_Q < length
        first_Q = tl.load(first_ptr + row * length + query_Q, mask=known_Q, other=length)
        low = tl.min(first_Q, 0) // BLOCK_K * BLOCK_K
        first_Q = tl.minimum(first_Q, query_Q)

    # A query that sees nothing of a block gets far, equal logits there; its own key, seen later at
    # the latest, takes their weight away again (2 to the minus far is 0).
    m_t = tl.full([BLOCK_Q], -1e30, tl.float32)
    m_s = tl.full([BLOCK_Q], -1e30, tl.float32)
    l_t = tl.zeros([BLOCK_Q], tl.float32)
    l_s = tl.zeros([BLOCK_Q], tl.float32)
    a = tl.zeros([BLOCK_Q], tl.float32)
    for begin in tl.range(low, start, BLOCK_K):
        key_K = begin + tl.arange(0, BLOCK_K)
        t_QK = _logits(teacher_QD, teacher_key_ptr, tk_token, key_K, dim_D, length, log2_scale,
                       D, IS_PADDED, True, PRECISION)  # fmt: skip
        s_QK = _logits(student_QD, student_key_ptr, sk_token, key_K, dim_D, length, log2_scale,
                       D, IS_PADDED, True, PRECISION)  # fmt: skip
        if HAS_FIRST:
            seen_QK = key_K[None, :] >= first_Q[:, None]
            t_QK = tl.where(seen_QK, t_QK, -1e30)
            s_QK = tl.where(seen_QK, s_QK, -1e30)
        m_t, m_s, l_t, l_s, a = _add(t_QK, s_QK, m_t, m_s, l_t, l_s, a)
    for begin in tl.range(start, tl.minimum(start + BLOCK_Q, length), BLOCK_K):
        key_K = begin + tl.arange(0, BLOCK_K)
        t_QK = _logits(teacher_QD, teacher_key_ptr, tk_token, key_K, dim_D, length, log2_scale,
                       D, IS_PADDED, False, PRECISION)  # fmt: skip
        s_QK = _logits(student_QD, student_key_ptr, sk_token, key_K, dim_D, length, log2_scale,
                       D, IS_PADDED, False, PRECISION)  # fmt: skip
        seen_QK = key_K[None, :] <= query_Q[:, None]
        if HAS_FIRST:
            seen_QK = seen_QK & (key_K[None, :] >= first_Q[:, None])
        t_QK = tl.where(seen_QK, t_QK, -1e30)
        s_QK = tl.where(seen_QK, s_QK, -1e30)
        m_t, m_s, l_t, l_s, a = _add(t_QK, s_QK, m_t, m_s, l_t, l_s, a)

    LN2: tl.constexpr = 0.6931471805599453
    log_t, log_s = tl.log2(l_t), tl.log2(l_s)
    place_Q = (row * num_heads + head) * length + query_Q
    known_Q = query_Q < length
    tl.store(kl_ptr + place_Q, (a / l_t - log_t + log_s) * LN2, mask=known_Q)
    tl.store(teacher_lse_ptr + place_Q, (m_t + log_t) * LN2, mask=known_Q)
    tl.store(student_lse_ptr + place_Q, (m_s + log_s) * LN2, mask=known_Q)


def statistics(problem: Problem, config: triton.Config | None = None) -> Statistics:
    """Compute the statistics of fp32, fp16 or bf16 tensors; products are summed in fp32.

    Args:
        problem: what is compared.
        config: block sizes; the fastest on this GPU if None.
    """
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in problem[:4]]
    problem = Problem._make([*tensors, problem.scale, problem.first_BT])
    config = _fastest(problem) if config is None else config
    return _launch(_kernel, problem, {**config.kwargs, **_compile_options(config)})


def _compile_options(config: triton.Config) -> dict[str, int]:
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def _launch(kernel: Any, problem: Problem, options: dict[str, int]) -> Statistics:
    query_BHTd, key_BhTd = problem.teacher_query_BHTd, problem.teacher_key_BhTd
    rows, num_heads, length, dim = query_BHTd.shape
    results = Statistics(
        *(
            torch.empty(rows, num_heads, length, dtype=torch.float32, device=query_BHTd.device)
            for _ in Statistics._fields
        )
    )

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(length, meta["BLOCK_Q"]), rows * num_heads

    first_BT = results.kl_BHT if problem.first_BT is None else problem.first_BT
    strides = [size for x in problem[:4] for size in x.stride()[:3]]
    kernel[grid](
        *problem[:4],
        first_BT,
        *results,
        length,
        num_heads,
        num_heads // key_BhTd.shape[1],
        problem.scale * math.log2(math.e),
        *strides,
        D=dim,
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        HAS_FIRST=problem.first_BT is not None,
        # TF32 would round fp32 inputs to 10 bits.
        PRECISION="ieee" if query_BHTd.dtype == torch.float32 else "tf32",
        **options,
    )
    return results


_tuned = triton.autotune(configs=CONFIGS, key=["D", "HAS_FIRST", "PRECISION"])(_kernel)
_known: dict[tuple[Any, ...], triton.Config] = {}


def _fastest(problem: Problem) -> triton.Config:
    """Return the fastest configuration for this type, head and kind of mask, timed once."""
    query_BHTd = problem.teacher_query_BHTd
    has_first = problem.first_BT is not None
    key = (query_BHTd.device, query_BHTd.dtype, query_BHTd.shape[-1], has_first)
    if key not in _known:
        short = [x[:1, :, :TUNING_TOKENS] for x in problem[:4]]
        first_BT: Tensor | None = None
        if problem.first_BT is not None:
            first_BT = problem.first_BT[:1, :TUNING_TOKENS].contiguous()
        _launch(_tuned, Problem._make([*short, problem.scale, first_BT]), {})
        _known[key] = _tuned.best_config
    return _known[key]
