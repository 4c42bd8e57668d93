"""The statistics of `attention_kl` as one Triton kernel: one block of queries per program.

The online sums are those of `longred.profiling.attention_kl`, in powers of two and always in fp32.
Imported only if Triton is installed and the tensors are on a GPU.

Products of fp16 and bf16 inputs are exact and summed in fp32. An fp32 input is split into three
bf16 numbers, and the six largest of their nine products run on tensor cores (Triton's `bf16x6`).
Largest error of a query's KL in nats against float64, with emulated tensor cores that truncate
every sum; 1,024 tokens, head dimension 128:

    largest logit, mean KL    5, 1e-4     32, 7e-3    151, 4e-2    318, 16
    fp32                      5.7e-9      1.4e-6      2.1e-5       2.2e-3
    bf16x6                    1.9e-9      3.3e-7      1.2e-5       4.0e-4
    tf32x3                    2.4e-9      5.0e-7      1.4e-5       1.6e-3
    tf32                      4.8e-6      7.7e-4      3.1e-2       1.0
    bf16                      7.2e-5      6.9e-3      2.1e-1       5.2

`bf16x6` is as fast as `tf32x3` (bf16 runs at twice the rate of TF32) and needs less shared memory.
Rounding the inputs to bf16 would change the mean KL of similar models by 6 %, so a profile stays in
fp32 unless its models are in bf16. `ieee` products use no tensor cores and take minutes to compile.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), d head dimension; in the kernel
Q queries and K keys of a block, D the head dimension and C a chunk of it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from longred.profiling.problem import Problem, Statistics

TUNING_TOKENS = 4096
"""Most tokens that configurations are timed on: at 128K a single launch takes seconds."""

HOPPER = (9, 0)
"""Compute capability with wgmma and 227 KiB of shared memory; other GPUs have 99 KiB or more."""


class Blocks(NamedTuple):
    """Sizes of one configuration; `keys` divides `queries`.

    Attributes:
        queries: number of queries of a program.
        keys: number of keys read at once.
        warps: warps of a program.
        stages: stages of the load pipeline.
        chunk: head dimensions multiplied at once; None for a whole head.
        heads: head dimensions that the configuration is for.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    chunk: int | None
    heads: range


ANY, SMALL, MIDDLE, LARGE = range(1, 2**16), range(1, 129), range(129, 257), range(129, 2**16)

CHOICES = {
    ("hopper", "half"): (
        Blocks(128, 128, 8, 2, None, SMALL),
        Blocks(128, 64, 8, 3, None, SMALL),
        Blocks(128, 64, 8, 2, None, SMALL),
        Blocks(64, 64, 4, 3, None, SMALL),
        Blocks(128, 32, 8, 2, None, MIDDLE),
        Blocks(64, 64, 4, 2, None, MIDDLE),
        Blocks(128, 64, 8, 3, 64, LARGE),
    ),
    ("hopper", "float32"): (
        Blocks(64, 32, 4, 2, None, SMALL),
        Blocks(128, 64, 8, 3, 32, ANY),
        Blocks(64, 64, 4, 2, 32, ANY),
    ),
    ("other", "half"): (
        Blocks(128, 64, 8, 2, None, SMALL),
        Blocks(64, 64, 4, 3, None, SMALL),
        Blocks(64, 64, 4, 2, None, SMALL),
        Blocks(64, 32, 4, 2, None, MIDDLE),
        Blocks(128, 64, 8, 2, 64, LARGE),
        Blocks(64, 64, 4, 2, 64, LARGE),
    ),
    ("other", "float32"): (
        Blocks(128, 64, 8, 3, 16, ANY),
        Blocks(128, 32, 8, 3, 16, ANY),
        Blocks(64, 64, 4, 2, 16, ANY),
    ),
}
"""Configurations to time, by GPU and dtype: at most four per head dimension. Each uses tensor cores
and fits the registers and shared memory; compiling one takes 3 to 10 seconds."""


def configurations(
    dtype: torch.dtype, dim: int, capability: tuple[int, int]
) -> list[triton.Config]:
    """Return the configurations to choose from.

    Args:
        dtype: dtype of queries and keys.
        dim: head dimension.
        capability: compute capability of the GPU.
    """
    gpu = "hopper" if capability == HOPPER else "other"
    whole = max(16, triton.next_power_of_2(dim))
    return [
        triton.Config(
            {
                "BLOCK_Q": blocks.queries,
                "BLOCK_K": blocks.keys,
                "CHUNK_D": min(whole, blocks.chunk or whole),
            },
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        for blocks in CHOICES[gpu, "float32" if dtype == torch.float32 else "half"]
        if dim in blocks.heads
    ]


@triton.jit
def _query(query_ptr, stride, query_Q, first, length, D: tl.constexpr, CHUNK_D: tl.constexpr):
    """Load queries [Q, C] from dimension `first` on; C is CHUNK_D."""
    dim_C = first + tl.arange(0, CHUNK_D)
    address_QC = query_ptr + query_Q.to(tl.int64)[:, None] * stride + dim_C[None, :]
    known_QC = (query_Q < length)[:, None] & (dim_C < D)[None, :]
    return tl.load(address_QC, mask=known_QC, other=0.0)


@triton.jit
def _key(key_ptr, stride, key_K, first, length, D: tl.constexpr, CHUNK_D: tl.constexpr,
         IS_INSIDE: tl.constexpr):  # fmt: skip
    """Load keys [C, K] from dimension `first` on; IS_INSIDE keys need no bounds check."""
    dim_C = first + tl.arange(0, CHUNK_D)
    address_CK = key_ptr + key_K.to(tl.int64)[None, :] * stride + dim_C[:, None]
    if IS_INSIDE and D % CHUNK_D == 0:
        return tl.load(address_CK)
    else:
        known_CK = (key_K < length)[None, :] & (dim_C < D)[:, None]
        return tl.load(address_CK, mask=known_CK, other=0.0)


@triton.jit
def _logits(query_QC, query_ptr, key_ptr, query_stride, key_stride, query_Q, key_K, length,
            log2_scale, D: tl.constexpr, CHUNK_D: tl.constexpr, IS_INSIDE: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Return one model's logits [Q, K] in powers of two; query_QC is used if C covers the head."""
    if CHUNK_D >= D:
        key_CK = _key(key_ptr, key_stride, key_K, 0, length, D, CHUNK_D, IS_INSIDE)
        logits_QK = tl.dot(query_QC, key_CK, input_precision=PRECISION)
    else:
        logits_QK = tl.zeros([query_Q.shape[0], key_K.shape[0]], tl.float32)
        for first in tl.range(0, D, CHUNK_D):
            chunk_QC = _query(query_ptr, query_stride, query_Q, first, length, D, CHUNK_D)
            key_CK = _key(key_ptr, key_stride, key_K, first, length, D, CHUNK_D, IS_INSIDE)
            logits_QK = tl.dot(chunk_QC, key_CK, logits_QK, input_precision=PRECISION)
    return logits_QK * log2_scale


@triton.jit
def _add(t_QK, s_QK, m_t, m_s, l_t, l_s, a):
    """Add a block of logits to the running statistics."""
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


@triton.jit(do_not_specialize=["length", "num_heads", "group"])
def _kernel(teacher_query_ptr, teacher_key_ptr, student_query_ptr, student_key_ptr, first_ptr,
            kl_ptr, teacher_lse_ptr, student_lse_ptr, length, num_heads, group, log2_scale,
            tq_row, tq_head, tq_token, tk_row, tk_head, tk_token,
            sq_row, sq_head, sq_token, sk_row, sk_head, sk_token,
            D: tl.constexpr, HAS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
            BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK_D: tl.constexpr):  # fmt: skip
    # One grid axis: a GPU allows 2^31 programs on the first axis, 65,535 on the others. The last
    # blocks of a head see the most keys and start first, so that none of them runs alone last.
    num_blocks = tl.cdiv(length, BLOCK_Q)
    block = num_blocks - 1 - tl.program_id(0) % num_blocks
    pair = tl.program_id(0) // num_blocks
    row, head = (pair // num_heads).to(tl.int64), (pair % num_heads).to(tl.int64)
    start = block * BLOCK_Q
    query_Q = start + tl.arange(0, BLOCK_Q)
    teacher_query_ptr += row * tq_row + head * tq_head
    student_query_ptr += row * sq_row + head * sq_head
    teacher_key_ptr += row * tk_row + (head // group) * tk_head
    student_key_ptr += row * sk_row + (head // group) * sk_head
    # Chunks of queries are loaded again for every block of keys.
    teacher_QC = None
    student_QC = None
    if CHUNK_D >= D:
        teacher_QC = _query(teacher_query_ptr, tq_token, query_Q, 0, length, D, CHUNK_D)
        student_QC = _query(student_query_ptr, sq_token, query_Q, 0, length, D, CHUNK_D)

    low = 0
    if HAS_FIRST:
        known_Q = query_Q < length
        first_Q = tl.load(first_ptr + row * length + query_Q, mask=known_Q, other=length)
        low = tl.min(first_Q, 0) // BLOCK_K * BLOCK_K
        first_Q = tl.minimum(first_Q, query_Q)

    # A query that sees no key of a block gets equal logits of -1e30 there. Its own key comes later
    # and rescales their weight to 0.
    m_t = tl.full([BLOCK_Q], -1e30, tl.float32)
    m_s = tl.full([BLOCK_Q], -1e30, tl.float32)
    l_t = tl.zeros([BLOCK_Q], tl.float32)
    l_s = tl.zeros([BLOCK_Q], tl.float32)
    a = tl.zeros([BLOCK_Q], tl.float32)
    for begin in tl.range(low, start, BLOCK_K):
        key_K = begin + tl.arange(0, BLOCK_K)
        t_QK = _logits(teacher_QC, teacher_query_ptr, teacher_key_ptr, tq_token, tk_token, query_Q,
                       key_K, length, log2_scale, D, CHUNK_D, True, PRECISION)  # fmt: skip
        s_QK = _logits(student_QC, student_query_ptr, student_key_ptr, sq_token, sk_token, query_Q,
                       key_K, length, log2_scale, D, CHUNK_D, True, PRECISION)  # fmt: skip
        if HAS_FIRST:
            seen_QK = key_K[None, :] >= first_Q[:, None]
            t_QK = tl.where(seen_QK, t_QK, -1e30)
            s_QK = tl.where(seen_QK, s_QK, -1e30)
        m_t, m_s, l_t, l_s, a = _add(t_QK, s_QK, m_t, m_s, l_t, l_s, a)
    for begin in tl.range(start, tl.minimum(start + BLOCK_Q, length), BLOCK_K):
        key_K = begin + tl.arange(0, BLOCK_K)
        t_QK = _logits(teacher_QC, teacher_query_ptr, teacher_key_ptr, tq_token, tk_token, query_Q,
                       key_K, length, log2_scale, D, CHUNK_D, False, PRECISION)  # fmt: skip
        s_QK = _logits(student_QC, student_query_ptr, student_key_ptr, sq_token, sk_token, query_Q,
                       key_K, length, log2_scale, D, CHUNK_D, False, PRECISION)  # fmt: skip
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
    """Compute the statistics of fp32, fp16 or bf16 tensors; sums are fp32.

    Args:
        problem: the inputs, without a soft cap.
        config: block sizes; the fastest on this GPU if None.

    Raises:
        ValueError: there is a soft cap, or the tensors differ in dtype or device.
    """
    query_BHTd = problem.teacher_query_BHTd
    kinds = {(x.dtype, x.device) for x in problem[:4]}
    if problem.softcap is not None or len(kinds) > 1:
        raise ValueError(
            "the kernel takes tensors of one type on one device and no soft cap, got "
            f"{sorted(map(str, kinds))} and softcap {problem.softcap}"
        )
    problem = problem.with_tensors(lambda x: x if x.stride(-1) == 1 else x.contiguous())
    # Triton launches on the current device, not on that of the tensors.
    with torch.cuda.device_of(query_BHTd):
        config = _fastest(problem) if config is None else config
        return _launch(_kernel, problem, config.all_kwargs())


def _launch(kernel: Any, problem: Problem, options: dict[str, Any]) -> Statistics:
    query_BHTd, key_BhTd = problem.teacher_query_BHTd, problem.teacher_key_BhTd
    rows, num_heads, length, dim = query_BHTd.shape
    results = Statistics(
        *(
            torch.empty(rows, num_heads, length, dtype=torch.float32, device=query_BHTd.device)
            for _ in Statistics._fields
        )
    )

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(length, meta["BLOCK_Q"]) * rows * num_heads,)

    kernel[grid](
        *problem[:4],
        results.kl_BHT if problem.first_BT is None else problem.first_BT,
        *results,
        length,
        num_heads,
        num_heads // key_BhTd.shape[1],
        problem.scale * math.log2(math.e),
        *(size for x in problem[:4] for size in x.stride()[:3]),
        D=dim,
        HAS_FIRST=problem.first_BT is not None,
        PRECISION=PRECISIONS.get(query_BHTd.dtype, "ieee"),
        **options,
    )
    return results


PRECISIONS = {torch.float32: "bf16x6"}
"""Precision of `tl.dot` by input dtype; products of 16-bit inputs are exact in any precision."""

_known: dict[tuple[Any, ...], triton.Config] = {}


def _fastest(problem: Problem) -> triton.Config:
    """Return the fastest configuration for this GPU, dtype, head dimension and mask; timed once."""
    query_BHTd, first_BT = problem.teacher_query_BHTd, problem.first_BT
    dtype, dim, device = query_BHTd.dtype, query_BHTd.shape[-1], query_BHTd.device
    key = (device, dtype, dim, first_BT is not None)
    if key not in _known:
        choices = configurations(dtype, dim, torch.cuda.get_device_capability(device))
        # A new tuner each time: Triton's own cache does not distinguish GPUs.
        tuner = triton.autotune(configs=choices, key=[])(_kernel)
        short = problem.with_tensors(lambda x: x[:1, :, :TUNING_TOKENS])
        if first_BT is not None:
            short = short._replace(first_BT=first_BT[:1, :TUNING_TOKENS].contiguous())
        _launch(tuner, short, {})
        _known[key] = tuner.best_config
    return _known[key]
