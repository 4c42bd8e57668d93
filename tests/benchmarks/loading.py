"""Measure the host memory of each training process while it loads student and teacher.

    python tests/benchmarks/loading.py --processes 4

Compares the trainer's way, in which each process reads only its own rows of the weights, with the
plain way: load the whole model, then shard it. Writes `results/loading.json` and prints a table.
The model is random, with weights on disk in bfloat16, the usual published type. Anonymous memory is
what a machine must provide. Resident memory also includes pages of the weight files, which all
processes share and the system can drop. Both are peaks above the level before loading.
"""

import argparse
import json
import multiprocessing
import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from longred.method.job import TrainingJob
from longred.method.layout import Layout
from longred.models import load as models
from longred.training.adapters import round_linear_layers
from longred.training.load import load_student, load_teacher
from longred.training.sharding import make_meshes, shard_student, shard_teacher
from longred.training.world import joined

RESULT = Path(__file__).parent / "results" / "loading.json"
CPU = torch.device("cpu")
MIB = 2**20
KINDS = {"anonymous": "RssAnon", "resident": "VmRSS"}
SAMPLE_SECONDS = 0.002


def memory() -> dict[str, float]:
    """Return the memory of this process by kind, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {
        kind: 1024.0 * int(status.split(f"{name}:")[1].split()[0]) for kind, name in KINDS.items()
    }


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Yield a dictionary that receives the block's peak memory above the level at its start."""
    before, peak, is_done = memory(), dict.fromkeys(KINDS, 0.0), threading.Event()

    def watch() -> None:
        while not is_done.wait(SAMPLE_SECONDS):
            now = memory()
            for kind in KINDS:
                peak[kind] = max(peak[kind], now[kind] - before[kind])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        is_done.set()
        thread.join()


def load_own_rows(job: TrainingJob, mesh: Any) -> list[Any]:
    """Load both models as the trainer does: only this process's rows."""
    student = load_student(job, CPU, mesh)
    folder = Path(job.teacher_folder)
    teacher = load_teacher(folder, dtype=job.dtype, device=CPU, backend="auto", mesh=mesh)
    return [student, teacher]


def load_whole(job: TrainingJob, mesh: Any) -> list[Any]:
    """Load both models whole, then shard them."""
    folder = Path(job.teacher_folder)
    student, teacher = models.load_model(folder), None
    shard_student(student, mesh)
    teacher = models.load_model(folder)
    teacher.requires_grad_(False)
    round_linear_layers(teacher)
    shard_teacher(teacher, mesh)
    return [student, teacher]


WAYS = {"whole, then divided": load_whole, "own rows": load_own_rows}


def work(way: str, values: dict[str, Any], environment: dict[str, str], results: Any) -> None:
    """Load in one process; send its peak memory and seconds to `results`."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    job = TrainingJob.from_json(values)
    with joined("cpu") as world:
        mesh = make_meshes(Layout(num_processes=world.size), CPU).weights
        started = time.perf_counter()
        with watched() as peak:
            held = WAYS[way](job, mesh)
        found = {**peak, "seconds": time.perf_counter() - started}
        world.gather(0)
        del held
        results.put(found)


def measure(way: str, values: dict[str, Any], num_processes: int) -> dict[str, float]:
    """Run all processes; return the largest peak memory and time of any process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(num_processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        arguments = (way, values, {**common, **own}, results)
        processes.append(context.Process(target=work, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{way}: at least one process failed")
    found = [results.get() for _ in processes]
    return {name: max(one[name] for one in found) for name in found[0]}


def main() -> None:
    """Measure both ways and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    config = LlamaConfig(
        vocab_size=32768,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=options.layers,
        num_attention_heads=12,
        num_key_value_heads=4,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        num_parameters = sum(weight.numel() for weight in model.parameters())
        del model
        job = TrainingJob(
            method="mix-cpt",
            data_folder="",
            data_digest="",
            student_folder=folder,
            teacher_folder=folder,
            rows={"long": 1, "short": 1, "original": 1},
            original_window=1024,
            target_window=2048,
            num_steps=1,
        )
        ways = {way: measure(way, job.to_json(), options.processes) for way in WAYS}
    result = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "num_parameters": num_parameters,
        "student_fp32_bytes": 4 * num_parameters,
        "num_processes": options.processes,
        "most_of_any_process": ways,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{num_parameters:,} parameters, {4 * num_parameters / MIB:,.0f} MiB in float32, "
        f"{options.processes} processes"
    )
    for way, found in ways.items():
        sizes = ", ".join(f"{kind} {found[kind] / MIB:,.0f} MiB" for kind in KINDS)
        print(f"{way:<20} {sizes}, {found['seconds']:.1f} s")


if __name__ == "__main__":
    main()
