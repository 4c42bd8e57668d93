"""Names of the kernels that ran and of the loaded cuDNN."""

import pytest
import torch
from test_torch_kernels import marked

from longred.attention import kernels
from longred.attention.kernels import cudnn_folders, loaded_cudnn, readable_version
from longred.attention.probe import kernel_report, name_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_report_names_what_the_cpu_runs(dtype: torch.dtype) -> None:
    family = "FlashAttention"
    report = kernel_report("cpu", dtype, 64)
    assert report == {"rows": family, "documents": family, "window": family}


@pytest.mark.parametrize(
    ("kernels", "operators", "name"),
    [
        (
            [
                "void at::native::elementwise_kernel<128, 4>(int)",
                "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3",
                "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26",
            ],
            ["aten::_scaled_dot_product_flash_attention"],
            "cuDNN (cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3, "
            "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26)",
        ),
        (
            [
                "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64>>(Params)",
                "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 64>>(Params)",
            ],
            [],
            "FlashAttention (pytorch_flash::flash_fwd_kernel)",
        ),
        (
            ["void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<int>>>(P)"],
            [],
            "FlashAttention (FlashAttnFwdSm90)",
        ),
        (
            ["fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"],
            [],
            "memory-efficient (fmha_cutlassF_bf16_aligned_64x128_rf_sm80)",
        ),
        (
            ["void (anonymous namespace)::softmax_warp_forward<float, float>(float*)"],
            ["aten::_scaled_dot_product_attention_math"],
            "math",
        ),
        ([], ["aten::mul", "aten::_scaled_dot_product_cudnn_attention"], "cuDNN"),
        ([], ["torch_attn::_varlen_attn"], "FlashAttention"),
        ([], ["aten::_scaled_dot_product_efficient_attention"], "memory-efficient"),
        ([], ["aten::_scaled_dot_product_attention_math"], "math"),
        ([], ["aten::mul"], "unknown"),
    ],
)
def test_kernels_are_named_by_family(kernels: list[str], operators: list[str], name: str) -> None:
    found = name_kernels(kernels, operators)
    assert found == name or (name == "math" and found.startswith("math ("))


OWN = "/opt/venv/lib/python3.12/site-packages/nvidia/cudnn/lib"
SYSTEM = "/usr/lib/x86_64-linux-gnu"


@pytest.mark.parametrize(
    ("folders", "path", "origin"),
    [
        ([OWN, OWN], OWN, "torch"),
        ([SYSTEM], SYSTEM, "system"),
        ([OWN, SYSTEM], f"{OWN}, {SYSTEM}", "mixed"),
        ([], "inside torch", "torch"),
    ],
)
def test_a_cudnn_that_hides_torchs_is_told(folders: list[str], path: str, origin: str) -> None:
    names = ("libcudnn.so.9.19.0", "libcudnn_graph.so.9")
    lines = [
        f"7f0{number}00000-7f0{number}10000 r-xp 00000000 08:01 {number}   {folder}/{name}"
        for number, (folder, name) in enumerate(zip(folders, names, strict=False))
    ]
    lines += ["7ffe0000-7ffe1000 rw-p 00000000 00:00 0 ", f"7f-8f r-xp 0 08:01 9 {SYSTEM}/libc.so"]
    expected = {"cudnn_path": path, "cudnn_origin": origin}
    assert cudnn_folders("\n".join(lines)) == expected


def test_cudnn_versions_are_readable() -> None:
    assert readable_version(91900) == "9.19.0"
    assert readable_version(90701) == "9.7.1"
    assert readable_version(8902) == "8.9.2"
    if not torch.backends.cudnn.is_available():
        assert loaded_cudnn() == {}


@marked
def test_the_report_on_a_gpu_names_the_kernels_of_the_order() -> None:
    report = kernel_report("cuda", torch.bfloat16, 128)
    major = torch.cuda.get_device_capability()[0]
    first = "cuDNN" if major in kernels.CUDNN_FIRST else "FlashAttention"
    assert report["rows"].startswith(first), report
    assert report["documents"].startswith("FlashAttention"), report
    assert report["window"].startswith("FlashAttention"), report
    assert report["cudnn_version"] == readable_version(torch.backends.cudnn.version())
    assert kernel_report("cuda", torch.float32, 128)["rows"].startswith("memory-efficient")
