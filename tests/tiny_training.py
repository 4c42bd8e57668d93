"""Data, fault injection and comparisons for the trainer's tests."""

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from longred.method.job import TrainingJob
from longred.store.journal import Journal
from longred.training.machine import MACHINE_METRICS

ORIGINAL, TARGET, SHORT = 64, 128, 32
MakeJob = Callable[..., TrainingJob]


def write_blocks(folder: Path, *, seed: int = 0) -> None:
    """Write a data folder of random tokens; long blocks hold documents of 10 to 90 tokens."""
    generator = np.random.default_rng(seed)
    entries = {}
    for bucket, length, num_blocks in (
        ("long", TARGET, 6),
        ("short", SHORT, 20),
        ("original", ORIGINAL, 5),
    ):
        (folder / "tokens").mkdir(parents=True, exist_ok=True)
        tokens = generator.integers(2, 500, size=(num_blocks, length))
        tokens.astype("<u2").tofile(folder / "tokens" / f"{bucket}.bin")
        entries[bucket] = {
            "block_length": length,
            "num_blocks": num_blocks,
            "dtype": "uint16",
            "file": f"tokens/{bucket}.bin",
        }
        if bucket == "long":
            cuts = np.cumsum(generator.integers(10, 90, size=200))
            ends = np.union1d(cuts, np.arange(length, tokens.size + 1, length))
            np.save(folder / "tokens/long.ends.npy", ends[ends <= tokens.size].astype(np.uint64))
            entries[bucket]["ends"] = "tokens/long.ends.npy"
    (folder / "index.json").write_text(json.dumps({"format_version": 1, "train": entries}))


def write_teacher(source: Path, folder: Path) -> None:
    """Copy a random model with 8 times larger matrices, so that RoPE visibly affects attention."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    scaled = {name: w * (8.0 if w.ndim > 1 else 1.0) for name, w in weights.items()}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})


def curve(result: Path) -> list[tuple[int, str, str]]:
    """Return all metrics of a run as exact hexadecimal floats, without MACHINE_METRICS."""
    lines = Journal(result / "metrics.jsonl").read()
    return [
        (line["step"], line["key"], float(line["value"]).hex())
        for line in lines
        if line["key"] not in MACHINE_METRICS
    ]


def weights_digest(result: Path) -> str:
    """Return the hash of the trained weights."""
    return hashlib.sha256((result / "model.safetensors").read_bytes()).hexdigest()


def assert_same_run(result: Path, reference: Path) -> None:
    """Check that two trainings have bit-identical metrics and weights."""
    assert curve(result) == curve(reference)
    assert weights_digest(result) == weights_digest(reference)


def run(
    context: Any, job: TrainingJob, work: Path, *, fault: str | None = None, timeout: float = 300.0
) -> int:
    """Train in a separate process with the fault `<name>@<step>`; return its exit code."""
    (code,) = run_together(context, job, work, faults=[fault], timeout=timeout)
    return code


def run_together(
    context: Any,
    job: TrainingJob,
    work: Path,
    *,
    faults: Sequence[str | None] = (None, None),
    timeout: float = 300.0,
) -> list[int]:
    """Train in one process per fault, None for an undisturbed one; return the exit codes.

    The processes find each other by the environment variables that torchrun sets.
    """
    job = dataclasses.replace(job, parallel={**job.parallel, "num_processes": len(faults)})
    arguments = [(job.to_json(), str(work), fault) for fault in faults]
    return call_together(context, _main, arguments, timeout=timeout)


def call_together(
    context: Any,
    function: Callable[..., None],
    arguments: Sequence[tuple[Any, ...]],
    *,
    timeout: float = 300.0,
) -> list[int]:
    """Call a function in one process per tuple of arguments; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, own in enumerate(arguments):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(arguments)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(context.Process(target=_call, args=(environment, function, own)))
        processes[-1].start()
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} processes did not end within {timeout} s"
    return [int(process.exitcode) for process in processes]


def _call(
    environment: Mapping[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def _main(values: Mapping[str, Any], work: str, fault: str | None) -> None:
    from longred.errors import LongredError
    from longred.training import loop
    from longred.training.stop import StopRequest
    from longred.training.world import joined

    stop = StopRequest()
    stop.install()
    name, _, step = (fault or "none@0").partition("@")
    on_step = FAULTS[name](int(step))
    job = TrainingJob.from_json(values)
    try:
        with joined("cpu") as world:
            loop.train(job, Path(work), on_step=on_step, stop_requested=stop, world=world)
    except LongredError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _at(step: int, act: Any) -> Any:
    def on_step(done: int, metrics: Mapping[str, float]) -> None:
        if done == step:
            act()

    return on_step


def _kill_after_step(step: int) -> Any:
    return _at(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _terminate_after_step(step: int) -> Any:
    return _at(step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _terminate_in_step(step: int) -> Any:
    """Send SIGTERM to this process after the first micro-batch of a step."""
    from longred.training.trainer import Trainer

    backward = Trainer._backward

    def terminated(trainer: Trainer, *args: Any) -> Any:
        losses = backward(trainer, *args)
        if trainer.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    Trainer._backward = terminated
    return _at(-1, None)


def _disk_full_after_step(step: int) -> Any:
    limit = (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    return _at(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))


def _during_save(signal_number: int, *, after: str) -> Any:
    """Send a signal while a step's checkpoint is written, right after its file `after`."""

    def arrange(step: int) -> Any:
        from longred.training import checkpoint

        write = checkpoint.save_file

        def save_file(tensors: Any, path: Path, metadata: Any) -> None:
            write(tensors, path, metadata)
            if path.parent.name.endswith(f"step-{step:06d}") and path.name == after:
                os.kill(os.getpid(), signal_number)

        checkpoint.save_file = save_file
        return _at(-1, None)

    return arrange


def _kill_before_rename(step: int) -> Any:
    from longred.training import checkpoint

    write = checkpoint.write_json

    def write_json(path: Path, value: Any) -> None:
        write(path, value)
        if path.name == checkpoint.MANIFEST and value["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write_json = write_json
    return _at(-1, None)


def _factor(factor: float, *, num_steps: int = 1) -> Any:
    """Multiply the long loss by a factor in `num_steps` steps."""
    return lambda step: _multiply_long_loss(factor, range(step, step + num_steps))


def _multiply_long_loss(factor: float, steps: range) -> Any:
    from longred.objectives import table
    from longred.training.trainer import Trainer

    train_step, long_loss = Trainer.train_step, table.long_loss
    now = [0]

    def remember_step(trainer: Trainer, *args: Any) -> Any:
        now[0] = trainer.step + 1
        return train_step(trainer, *args)

    def changed_loss(*args: Any, **kwargs: Any) -> Any:
        loss = long_loss(*args, **kwargs)
        return loss * factor if now[0] in steps else loss

    Trainer.train_step, table.long_loss = remember_step, changed_loss
    return _at(-1, None)


def _emulate_fp8(bound: float) -> Any:
    """Emulate FP8 here; the trainer accepts it if hidden states move by at most `bound`."""

    def arrange(step: int) -> Any:
        from longred.training import checks, load, machine

        to_fp8 = load.to_fp8
        machine.check_fp8 = lambda device: None
        load.to_fp8 = lambda model, **_: to_fp8(model, emulate=True)
        checks.HIDDEN_BOUND = bound
        return _at(-1, None)

    return arrange


FAULTS = {
    "none": lambda step: _at(-1, None),
    "kill": _kill_after_step,
    "terminate": _terminate_after_step,
    "terminate-in-step": _terminate_in_step,
    "disk-full": _disk_full_after_step,
    "kill-in-save": _during_save(signal.SIGKILL, after="model.safetensors"),
    "terminate-in-save": _during_save(signal.SIGTERM, after="model.safetensors"),
    "kill-in-sharded-save": _during_save(signal.SIGKILL, after="model-00002-of-00002.safetensors"),
    "kill-before-rename": _kill_before_rename,
    "nan": _factor(float("nan")),
    "spike": _factor(100.0),
    "fp8": _emulate_fp8(10.0),
    "fp8-too-rough": _emulate_fp8(1e-9),
    "three-spikes": _factor(100.0, num_steps=3),
}
