"""Run the Triton kernel on the CPU in its own process.

A process either interprets or compiles all of Triton's functions, and a worker may run tests of
both kinds.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from longred.profiling.problem import Problem, Statistics

Sizes = dict[str, Any]
"""Arguments of `triton.Config`."""


def statistics(problem: Problem, sizes: Sizes | None) -> Statistics:
    """Run the kernel in this process; the fastest configuration if no sizes are given."""
    import triton

    from longred.profiling import attention_kl_triton

    return attention_kl_triton.statistics(problem, sizes and triton.Config(**sizes))


def tuned_statistics(problem: Problem) -> tuple[Statistics, int, list[str]]:
    """Time the configurations; return the statistics, the number of timings and the tuned configs.

    Stands in for a GPU's events and compute capability. Calls the kernel twice.
    """
    from triton.runtime.autotuner import Autotuner

    from longred.profiling import attention_kl_triton

    calls = []

    def seconds(call: Any, quantiles: Any) -> list[float]:
        calls.append(call)
        start = time.perf_counter()
        call()
        return [time.perf_counter() - start] * 3

    Autotuner.do_bench = staticmethod(seconds)
    torch.cuda.get_device_capability = lambda device: (9, 0)  # type: ignore[assignment]
    attention_kl_triton.statistics(problem)
    found = attention_kl_triton.statistics(problem)
    return found, len(calls), [str(config) for config in attention_kl_triton._known.values()]


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from triton.runtime import interpreter as module

    # The interpreter always multiplies in fp32, but rejects the name bf16x6 by default.
    known = module.InterpreterOptions.allowed_dot_input_precisions
    module.interpreter_builder.options = module.InterpreterOptions(
        allowed_dot_input_precisions=(*known, "bf16x6")
    )


@contextmanager
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """Yield a process in which Triton's functions are interpreted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_interpret) as process:
        yield process
