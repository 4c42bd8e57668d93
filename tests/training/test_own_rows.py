"""Sharded models read the same weights from their files as whole models."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_architectures import CASES
from tiny_training import ORIGINAL, TARGET, MakeJob, call_together
from transformers import ApertusConfig, AutoModelForCausalLM, LlamaConfig

from longred.errors import MismatchError, PreflightError
from longred.method.job import TrainingJob
from longred.method.layout import Layout
from longred.models.extension import write_extension
from longred.models.load import build_model, hidden_states, load_model
from longred.training.load import load_student, load_teacher
from longred.training.sharding import Meshes, entered, local, make_meshes, whole
from longred.training.weight_files import WeightFiles
from longred.training.world import joined

CPU = torch.device("cpu")


def make_models(case: str, tokenizer: Path, folder: Path) -> dict[str, str]:
    """Write an original and an extended model; one case has two bfloat16 files."""
    make_config, method, settings = CASES[case]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config())
    if case == "llama":
        model.to(torch.bfloat16)
    model.save_pretrained(folder / "teacher", max_shard_size="60KB" if case == "llama" else "5GB")
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder / "teacher")
    windows = {"original_window": ORIGINAL, "target_window": TARGET}
    student = folder / "student"
    write_extension(folder / "teacher", student, digest="0", method=method, **windows, **settings)
    return {"teacher_folder": str(folder / "teacher"), "student_folder": str(student)}


def compare_all(jobs: list[dict[str, Any]], replicas: int) -> None:
    """Compare whole and sharded models of every job, in one of several processes."""
    with joined("cpu") as world:
        layout = Layout(num_processes=world.size, replicas=replicas)
        meshes = make_meshes(layout, CPU)
        for values in jobs:
            job = TrainingJob.from_json(values)
            compare(job, meshes, world.size // replicas)


def compare(job: TrainingJob, meshes: Meshes, num_parts: int) -> None:
    students = []
    for mesh in (None, meshes.weights):
        torch.manual_seed(job.seed)
        students.append(load_student(job, CPU, mesh))
    folder = Path(job.teacher_folder)
    teachers = []
    for mesh in (None, meshes.weights):
        opened = load_teacher(folder, dtype=job.dtype, device=CPU, backend="auto", mesh=mesh)
        with opened() as teacher:
            teachers.append(teacher)
    own, all_ = (sum(local(w).nbytes for w in student.parameters()) for student in students[::-1])
    # Uneven splits give some processes one more row; an expert is one row.
    rows = sum(weight.nbytes // len(weight) for weight in students[0].parameters())
    assert own <= all_ / num_parts + rows
    for expected, found in (students, teachers):
        compare_models(expected, found)
        assert not any(weight.is_meta for weight in found.parameters())


def compare_models(expected: Any, found: Any) -> None:
    weights, divided = dict(expected.named_parameters()), dict(found.named_parameters())
    assert weights.keys() == divided.keys()
    for name, weight in weights.items():
        assert divided[name].dtype == weight.dtype, name
        assert divided[name].requires_grad == weight.requires_grad, name
        assert torch.equal(whole(divided[name]), weight), name
    buffers, others = dict(expected.named_buffers()), dict(found.named_buffers())
    assert buffers.keys() == others.keys()
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in buffers.items():
        assert torch.equal(others[name], buffer), name
    tokens = torch.arange(2, 2 + TARGET)[None]

    def states(model: Any) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return hidden_states(model, tokens, layers=[3])[3]

    assert torch.equal(entered(found, lambda: states(found)), states(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "replicas", "cases"), [(3, 1, tuple(CASES)), (4, 2, ("llama", "gemma3"))]
)
def test_every_architecture_is_what_a_whole_model_is(
    num_processes,
    replicas,
    cases,
    make_job: MakeJob,
    tiny_model_folder: Path,
    processes,
    tmp_path: Path,
):
    """Three processes split no weight evenly; adapters start as in one process."""
    jobs = []
    for case in cases:
        folders = make_models(case, tiny_model_folder, tmp_path / case)
        jobs.append(make_job(dtype="bfloat16", **folders).to_json())
        if case in ("llama", "gemma3"):
            jobs.append(make_job(method="lora", dtype="bfloat16", **folders).to_json())
    codes = call_together(processes, compare_all, [(jobs, replicas)] * num_processes)
    assert codes == [0] * num_processes


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def load_with_little_memory(job: dict[str, Any], weight_bytes: int) -> None:
    with joined("cpu"):
        mesh = make_meshes(Layout(num_processes=2), CPU).weights
        before = peak_bytes()
        load_student(TrainingJob.from_json(job), CPU, mesh)
        used = peak_bytes() - before
        # A process needs half of the weights and that half's file pages in 16 bits; a whole model
        # needs more.
        assert used < 0.9 * weight_bytes, f"{used / 2**20:.0f} of {weight_bytes / 2**20:.0f} MiB"


@pytest.mark.medium
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_no_process_holds_a_whole_model(make_job: MakeJob, processes, tmp_path: Path):
    config = LlamaConfig(
        vocab_size=32768,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        torch_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    weight_bytes = 4 * sum(weight.numel() for weight in model.parameters())
    job = make_job(student_folder=str(tmp_path), teacher_folder=str(tmp_path)).to_json()
    assert call_together(processes, load_with_little_memory, [(job, weight_bytes)] * 2) == [0, 0]


@pytest.fixture
def changed_weights(make_job: MakeJob, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = Path(make_job().teacher_folder)
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    return path, load_file(path)


def read(folder: Path) -> WeightFiles:
    model = build_model(folder, dtype=torch.float32, device=CPU)
    return WeightFiles(model, sorted(folder.glob("*.safetensors")))


def test_weights_of_another_model_are_refused(changed_weights):
    path, weights = changed_weights
    name = "model.layers.1.mlp.up_proj.weight"
    read(path.parent)
    for change, problem in (
        ({name: weights[name][:-1].clone()}, rf"first {name} has shape"),
        ({"model.layers.9.mlp.up_proj.weight": weights[name].clone()}, "layers.9.* is unknown"),
        # Saved with the weights by early versions of transformers.
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, None),
    ):
        save_file({**weights, **change}, path)
        if problem is None:
            read(path.parent)
            continue
        with pytest.raises(MismatchError, match=problem):
            read(path.parent)
    save_file({n: w for n, w in weights.items() if n != name}, path)
    with pytest.raises(MismatchError, match=rf"1 differences, first {name} is missing"):
        read(path.parent)


def test_saved_numbers_are_read(tmp_path: Path):
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = ApertusConfig(**shape, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    saved = AutoModelForCausalLM.from_config(config)
    saved.model.layers[0].mlp.act_fn.beta.fill_(0.75)
    saved.save_pretrained(tmp_path)
    model: Any = load_model(tmp_path)
    beta = model.model.layers[0].mlp.act_fn.beta
    assert beta.ndim == 0
    beta.zero_()
    read(tmp_path).fill(model, CPU)
    assert model.model.layers[0].mlp.act_fn.beta == 0.75


def test_a_damaged_file_is_refused(changed_weights):
    path, _ = changed_weights
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PreflightError, match=r"model\.safetensors: cannot be read"):
        read(path.parent)
