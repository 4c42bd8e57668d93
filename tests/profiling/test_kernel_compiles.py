"""The Triton kernel cross-compiled for GPUs, and its machine code inspected.

Every configuration uses tensor cores, fits registers and shared memory, and stays small. Compiling
one takes 3 to 10 seconds on one core.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402 - needs Triton
from triton.compiler import ASTSource  # noqa: E402

from longred.profiling.attention_kl_triton import (  # noqa: E402
    PRECISIONS,
    _kernel,
    configurations,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted functions do not compile"
    ),
]
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
SHARED_KIB = {90: 227, 80: 99}
"""Shared memory of a block on sm_90; for other GPUs the minimum (sm_86, sm_89, sm_120)."""
INSTRUCTIONS = 6000
"""Instruction limit of a kernel, as a proxy for its compile time."""
LOCAL = 8
"""Limit of spilled-register loads and stores in a kernel of 2,000 to 5,500 instructions; Triton
3.7.1 has none, 3.6.0 a few."""


@dataclass(frozen=True)
class Compiled:
    """Counts from a compiled kernel."""

    multiplications: int
    local: int
    shared_kib: float
    instructions: int


def compile_kernel(
    config: Any, dtype: torch.dtype, dim: int, has_first: bool, capability: int
) -> Compiled:
    """Compile for addresses and strides divisible by 16, as in real launches."""
    constants = {
        "D": dim,
        "HAS_FIRST": has_first,
        "PRECISION": PRECISIONS.get(dtype, "ieee"),
        **config.kwargs,
    }
    inputs = {f"{model}_{x}_ptr" for model in ("teacher", "student") for x in ("query", "key")}
    signature, attributes = {}, {}
    for index, name in enumerate(_kernel.arg_names):
        is_stride = re.match("[ts][qk]_", name)
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            kind = NAMES[dtype] if name in inputs else "fp32"
            signature[name] = "*i32" if name == "first_ptr" and has_first else f"*{kind}"
        else:
            signature[name] = "fp32" if name == "log2_scale" else "i32"
        if name.endswith("_ptr") or is_stride:
            attributes[(index,)] = [["tt.divisibility", 16]]
    kernel = triton.compile(
        ASTSource(_kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    code = machine_code(kernel.asm["cubin"])
    return Compiled(
        multiplications=len(re.findall(r"\bH(?:G)?MMA\.", code)),
        local=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared_kib=kernel.metadata.shared / 1024,
        instructions=len(re.findall(r"^\s+(?:/\*\w+\*/|[@A-Z]).*;", code, re.MULTILINE)),
    )


def machine_code(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


CASES = [
    (torch.float32, 80, False),
    (torch.float32, 128, False),
    (torch.float32, 128, True),
    (torch.bfloat16, 64, True),
    (torch.bfloat16, 96, True),
    (torch.bfloat16, 128, False),
    (torch.bfloat16, 128, True),
    (torch.bfloat16, 256, False),
    (torch.bfloat16, 256, True),
    (torch.float16, 128, True),
]


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize(("dtype", "dim", "has_first"), CASES)
def test_every_choice_multiplies_on_tensor_cores_within_the_chip(
    dtype: torch.dtype, dim: int, has_first: bool, capability: int
) -> None:
    choices = configurations(dtype, dim, (capability // 10, capability % 10))
    assert 3 <= len(choices) <= 4
    for config in choices:
        compiled = compile_kernel(config, dtype, dim, has_first, capability)
        print(config, compiled)
        assert compiled.multiplications >= 4, (config, compiled)
        assert compiled.local <= LOCAL, (config, compiled)
        assert compiled.shared_kib <= SHARED_KIB[capability], (config, compiled)
        assert compiled.instructions <= INSTRUCTIONS, (config, compiled)
