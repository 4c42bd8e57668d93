"""Compare the trainer with the authors' way of computing the same losses, and with its own plan.

    python tests/benchmarks/training.py cpu       # 512 x 8 layers, 256 -> 1,024: a few minutes
    python tests/benchmarks/training.py smollm2   # SmolLM2-135M's shape, 8K -> 16K: half an hour
    python tests/benchmarks/training.py gpu-32k   # Llama-3-8B's shape, 8K -> 32K
    python tests/benchmarks/training.py gpu-128k  # long blocks of 128K, ours only
    python tests/benchmarks/training.py tiny      # the same code on a tiny shape, seconds

"Theirs" keeps all hidden states of both models, runs both LM heads and the student's cross-entropy
on every micro-batch, and recomputes every layer in the backward pass. Weights and data are random.
Data type, threads, attention kernels and optimizer are the same on both sides; micro-batches are,
too, unless the preset sets others for theirs. The three losses of every step must agree. Each side
runs in its own process. The plan is made from micro-benchmarks of matrix products and attention,
and printed before the sides are measured.

Needs torch, transformers, accelerate, numpy and safetensors only.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from longred.attention.backends import choose_backend, needs_of
from longred.attention.function import guard, register
from longred.cost.calibrate import calibrate
from longred.cost.machine import peak_bytes
from longred.cost.plan import TrainingPlan, plan_training
from longred.cost.shape import ModelShape, shape_of
from longred.cost.speeds import Speeds
from longred.method.job import TrainingJob
from longred.models import load as models
from longred.store.artifacts import write_json
from longred.training import handshake
from longred.training.adapters import round_linear_layers
from longred.training.layers.activations import checkpoint_activations
from longred.training.loop import Trainer
from longred.training.machine import Meter
from longred.training.step import MicroBatch, Teacher

RESULTS = Path(__file__).parent / "results"
OUT_OF_MEMORY = 9


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model's shape, its windows, and the size of a step.

    Attributes:
        model: fields of the Llama configuration.
        layers: numbers of decoder layers to try in turn until both sides fit.
        rows: blocks of each bucket per step.
        settings: further fields of the training job.
        with_theirs: whether to run the authors' way too.
        their_micro_batch_tokens: micro-batch size of the authors' way; 0 for the same as ours. They
            process all rows of a bucket at once; ours may split them, since each micro-batch's loss
            is weighted by its share of the step.
    """

    model: Mapping[str, Any]
    layers: tuple[int, ...]
    rows: Mapping[str, int]
    original_window: int
    target_window: int
    short_length: int
    settings: Mapping[str, Any]
    distill: int = 6
    method: str = "longred-c"
    with_theirs: bool = True
    their_micro_batch_tokens: int = 0

    @property
    def lengths(self) -> dict[str, int]:
        return {
            "long": self.target_window,
            "short": self.short_length,
            "original": self.original_window,
        }


_LLAMA_8B = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
_LLAMA_512 = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1536,
    "vocab_size": 32768,
}
_ON_GPU = {
    "dtype": "bfloat16",
    "device": "cuda",
    "optimizer_offload": True,
    "activation_checkpointing": "selective",
    "mlp_tile_tokens": 8192,
}
PRESETS = {
    "tiny": Preset(
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 192,
            "vocab_size": 512,
        },
        (2,),
        {"long": 2, "short": 12, "original": 2},
        64,
        256,
        32,
        {"dtype": "float32", "device": "cpu", "micro_batch_tokens": 256, "num_threads": 1},
        distill=2,
    ),
    "cpu": Preset(
        _LLAMA_512,
        (8,),
        {"long": 8, "short": 48, "original": 8},
        256,
        1024,
        128,
        {"dtype": "float32", "device": "cpu", "micro_batch_tokens": 1024},
        distill=3,
        their_micro_batch_tokens=8192,
    ),
    "smollm2": Preset(
        {
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
        (30,),
        {"long": 1, "short": 12, "original": 1},
        8192,
        16384,
        1024,
        {"dtype": "bfloat16", "device": "cpu", "micro_batch_tokens": 16384},
    ),
    "gpu-32k": Preset(
        _LLAMA_8B,
        (32, 24, 16, 12, 8, 4),
        {"long": 4, "short": 96, "original": 4},
        8192,
        32768,
        1024,
        {**_ON_GPU, "micro_batch_tokens": 32768, "short_micro_batch_tokens": 8192},
    ),
    "gpu-128k": Preset(
        _LLAMA_8B,
        (32, 24, 16, 12, 8, 4),
        {"long": 1},
        8192,
        131072,
        1024,
        {**_ON_GPU, "micro_batch_tokens": 131072},
        method="cpt",
        with_theirs=False,
    ),
}
# Both sides process all rows of a bucket at once and recompute layers.
PRESETS["cpu-whole"] = dataclasses.replace(
    PRESETS["cpu"],
    settings={
        **PRESETS["cpu"].settings,
        "micro_batch_tokens": 8192,
        "activation_checkpointing": "selective",
        "uncheckpointed_tokens": 0,
        "mlp_tile_tokens": 2048,
    },
    their_micro_batch_tokens=0,
)
PRESETS["gpu-tiny"] = dataclasses.replace(
    PRESETS["tiny"], settings={**PRESETS["tiny"].settings, "dtype": "bfloat16", "device": "cuda"}
)


def model_config(preset: Preset, layers: int, *, theta: float) -> LlamaConfig:
    return LlamaConfig(
        **{"tie_word_embeddings": False, **preset.model},
        num_hidden_layers=layers,
        max_position_embeddings=preset.target_window,
        architectures=["LlamaForCausalLM"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )


def make_job(preset: Preset, layers: int, folder: Path, num_steps: int) -> TrainingJob:
    distill = np.linspace(1, layers, min(preset.distill, layers)).round().astype(int)
    uses_layers = preset.method != "cpt"
    # The authors do not mask attention between documents.
    settings = {"mask_documents": False, **preset.settings}
    return TrainingJob(
        method=preset.method,
        data_folder=str(folder / "data"),
        student_folder=str(folder / "student"),
        teacher_folder=str(folder / "teacher"),
        data_digest="random",
        rows=preset.rows,
        original_window=preset.original_window,
        target_window=preset.target_window,
        num_steps=num_steps,
        distill_layers=tuple(map(int, distill)) if uses_layers else (),
        save_every_steps=10**6,
        **settings,
    )


def write_inputs(preset: Preset, layers: int, folder: Path, num_steps: int) -> None:
    """Write random blocks and both configurations; each side initialises its own weights."""
    generator = np.random.default_rng(0)
    (folder / "data/tokens").mkdir(parents=True)
    entries = {}
    for bucket, length in preset.lengths.items():
        blocks = max(1, preset.rows.get(bucket, 1) * num_steps)
        size = (blocks, length)
        tokens = generator.integers(0, preset.model["vocab_size"], size=size, dtype="<u4")
        tokens.tofile(folder / f"data/tokens/{bucket}.bin")
        entries[bucket] = {
            "block_length": length,
            "num_blocks": blocks,
            "dtype": "uint32",
            "file": f"tokens/{bucket}.bin",
        }
    write_json(folder / "data/index.json", {"format_version": 1, "train": entries})
    for name, theta in (("teacher", 5e5), ("student", 2e7)):
        model_config(preset, layers, theta=theta).save_pretrained(folder / name)


def random_model(folder: Path, **options: Any) -> PreTrainedModel:
    """Stand in for `models.load_model`: build a model with the same random weights each time."""
    register()
    config = models.load_config(folder)
    config._attn_implementation = "longred"
    device, compute = torch.device(options["device"]), options["compute_dtype"]
    kernels = choose_backend(options["backend"], needs_of(config, device, compute))
    torch.manual_seed(1)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=options["dtype"])
    guard(model, kernels)
    return model.to(device).eval()


def random_weights() -> None:
    """Make the trainer initialise its models at random instead of reading them from disk.

    Nor can it compare its first layers with the model's own: there are no files.
    """
    models.load_model = random_model  # type: ignore[assignment]
    handshake.require = lambda *_, **__: None


class TheirTrainer(Trainer):
    """Run the authors' micro-steps inside our step: only the computation of each loss differs."""

    def __init__(self, job: TrainingJob, work: Path) -> None:
        ours = dataclasses.replace(
            job, activation_checkpointing="none", mlp_tile_tokens=0, fused=False
        )
        super().__init__(ours, work)
        checkpoint_activations(self.student, "full")

    def _make_meter(self) -> Meter:
        """Plan only FLOPs: the memory plan models our way and would reject theirs."""
        shape = shape_of(models.load_config(Path(self.job.student_folder)))
        lengths = {bucket: file.block_length for bucket, file in self.loader.files.items()}
        return Meter(shape, self.job, lengths, self.device)

    def _load_teacher(self, mesh: DeviceMesh | None) -> Teacher:
        """Load a teacher with its LM head, which ours drops."""
        self.teacher = random_model(
            Path(self.job.teacher_folder),
            dtype=torch.float32,
            device=self.device,
            backend=self.job.attention_backend,
            compute_dtype=getattr(torch, self.job.dtype),
        ).requires_grad_(False)
        if self.job.dtype == "bfloat16":
            round_linear_layers(self.teacher)
        return lambda: contextlib.nullcontext(self.teacher)

    def _backward(self, batch: MicroBatch, weights: Mapping[Any, float]) -> dict[Any, Tensor]:
        batch = batch.to(self.device)
        (term,) = batch.shares
        enabled = self.job.dtype == "bfloat16"
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False
        ):
            loss = self._loss(batch, term.objective)
        (loss * (weights[term] * batch.shares[term])).backward()
        return {term: loss.detach()}

    def _loss(self, batch: MicroBatch, objective: str) -> Tensor:
        ids, last = batch.input_ids_BT, self.objectives.last_layer
        settings = {"use_cache": False, "output_hidden_states": True}
        student: nn.Module = self.student
        output = student(input_ids=ids, position_ids=batch.position_ids_BT, **settings)
        # Computed on every micro-batch, discarded on most.
        cross_entropy = F.cross_entropy(
            output.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()
        )
        if objective == "cross_entropy":
            return cross_entropy
        with torch.no_grad():
            shown = self.teacher(input_ids=ids, **settings)
        layers = self.job.distill_layers if objective == "hidden_distill" else (last,)
        similar = [
            F.cosine_similarity(
                output.hidden_states[layer].float(), shown.hidden_states[layer].float(), dim=-1
            )
            for layer in layers
        ]
        return torch.stack([1 - one.mean() for one in similar]).sum()


SIDES = {"ours": Trainer, "theirs": TheirTrainer}


def run_side(side: str, job: TrainingJob, work: Path) -> dict[str, Any]:
    """Run a warm-up step, then the timed steps; return times, losses and peak memory."""
    random_weights()
    trainer = SIDES[side](job, work)
    steps = []
    for _ in range(job.num_steps):
        _wait(trainer.device)
        start, processor = time.perf_counter(), time.process_time()
        metrics = trainer.train_step()
        _wait(trainer.device)
        steps.append(
            {
                "seconds": time.perf_counter() - start,
                "processor_seconds": time.process_time() - processor,
                "metrics": dict(metrics),
            }
        )
    found = {
        "seconds": [step["seconds"] for step in steps[1:]],
        "processor_seconds": [step["processor_seconds"] for step in steps[1:]],
        "losses": [
            {key: value for key, value in step["metrics"].items() if key.endswith("_loss")}
            for step in steps
        ],
        "mfu": [step["metrics"]["train/mfu"] for step in steps[1:]],
        "micro_batch_tokens": job.micro_batch_tokens,
        "peak_bytes": peak_bytes(trainer.device),
        "step_tokens": trainer.meter.step_tokens,
    }
    if side == "ours":
        # Profile last, so that the profiler's own memory is not counted.
        found["top_costs"] = top_costs(trainer.train_step, trainer.device)
    return found


def top_costs(work: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Profile one call; return the kernels that took longest and their share of the total time."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=kinds, acc_events=True) as profiler:
        work()
        _wait(device)
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events) or 1.0
    return [
        {
            "kernel": event.key[:100],
            "share": round(getattr(event, attribute) / total, 4),
            "calls": event.count,
        }
        for event in events[:12]
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_plan(shape: ModelShape, job: TrainingJob, preset: Preset) -> tuple[Speeds, TrainingPlan]:
    """Plan the training from measured speeds of matrix products and attention only."""
    lengths = {bucket: preset.lengths[bucket] for bucket in job.rows}
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    speeds = calibrate(
        shape,
        sorted(lengths.values()),
        tokens=job.micro_batch_tokens,
        device=models.choose_device(job.device),
        dtype=getattr(torch, job.dtype),
        backend=job.attention_backend,
    )
    return speeds, plan_training(shape, job, lengths, speeds)


def child(arguments: argparse.Namespace) -> None:
    """Run one part of the measurement and print its JSON."""
    preset = PRESETS[arguments.preset]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(preset, arguments.layers, folder, arguments.steps)
        if arguments.threads:
            job = dataclasses.replace(job, num_threads=arguments.threads)
        if arguments.part == "plan":
            shape = shape_of(model_config(preset, arguments.layers, theta=2e7))
            speeds, plan = make_plan(shape, job, preset)
            print(json.dumps({"speeds": _plain(speeds), "plan": plan.to_json()}))
            return
        write_inputs(preset, arguments.layers, folder, arguments.steps)
        if arguments.part == "theirs" and not arguments.same_micro_batches:
            most = preset.their_micro_batch_tokens or job.micro_batch_tokens
            job = dataclasses.replace(job, micro_batch_tokens=most)
        try:
            found = run_side(arguments.part, job, folder / "work")
        except torch.OutOfMemoryError as error:
            print(str(error)[:300], file=sys.stderr)
            sys.exit(OUT_OF_MEMORY)
        print(json.dumps(found))


def _plain(speeds: Speeds) -> dict[str, Any]:
    values = dataclasses.asdict(speeds)
    values["attention_flops"] = {str(k): list(v) for k, v in speeds.attention_flops.items()}
    return values


def part(arguments: argparse.Namespace, name: str, layers: int) -> dict[str, Any] | None:
    """Run one part in its own process; return None if it ran out of memory."""
    command = [sys.executable, __file__, arguments.preset, "--part", name, "--layers", str(layers)]
    command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    command += ["--same-micro-batches"] if arguments.same_micro_batches else []
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if run.returncode == OUT_OF_MEMORY or run.returncode == 3:
        return None
    if run.returncode:
        sys.exit(f"{name} ended with exit code {run.returncode}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plan, then run ours and theirs with the largest number of layers that fits both."""
    preset = PRESETS[arguments.preset]
    tries = (arguments.layers,) if arguments.layers else preset.layers
    found: dict[str, Any] = {}
    for layers in tries:
        planned = part(arguments, "plan", layers)
        assert planned is not None
        if not planned["plan"]["fits"]:
            print(f"{layers} layers: do not fit, according to the plan", flush=True)
            continue
        if "plan" not in found:
            _show_plan(planned["plan"], layers)
        ours = part(arguments, "ours", layers)
        if ours is None:
            print(f"{layers} layers: ours: out of memory", flush=True)
            continue
        summary = _summary(planned, ours, layers)
        if "ours" not in found:
            found |= summary
            _show_ours(summary)
        if not preset.with_theirs:
            return found
        theirs = part(arguments, "theirs", layers)
        if theirs is None:
            print(f"{layers} layers: theirs: out of memory", flush=True)
            continue
        found["compared"] = _compared(ours, theirs, layers, PRESETS[arguments.preset].settings)
        _show_compared(found["compared"])
        return found
    return found


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _summary(planned: Mapping[str, Any], ours: Mapping[str, Any], layers: int) -> dict[str, Any]:
    seconds = _median(ours["seconds"])
    plan = planned["plan"]
    return {
        "layers": layers,
        "speeds": planned["speeds"],
        "plan": plan,
        "ours": {
            **ours,
            "step_seconds": seconds,
            "tokens_per_second": ours["step_tokens"] / seconds,
        },
        "plan_error": {
            "step_seconds": plan["step_seconds"] / seconds - 1,
            "memory": plan["memory_bytes"] / ours["peak_bytes"] - 1,
        },
    }


def _compared(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], layers: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Check that both sides have the same losses; compare their time and peak memory."""
    error = max(
        largest_difference(mine, other, settings["dtype"])
        for mine, other in zip(ours["losses"], theirs["losses"], strict=True)
    )
    sides = (("o", ours), ("t", theirs))
    seconds = {side: _median(x["seconds"]) for side, x in sides}
    processor = {side: _median(x["processor_seconds"]) for side, x in sides}
    return {
        "layers": layers,
        "largest_relative_loss_difference": error,
        "our_seconds": seconds["o"],
        "their_seconds": seconds["t"],
        "times_their_tokens_per_second": seconds["t"] / seconds["o"],
        "times_by_processor_time": processor["t"] / processor["o"],
        "their_peak_bytes": theirs["peak_bytes"],
        "their_micro_batch_tokens": theirs["micro_batch_tokens"],
        "share_of_their_peak": ours["peak_bytes"] / theirs["peak_bytes"],
    }


def largest_difference(ours: Mapping[str, float], theirs: Mapping[str, float], dtype: str) -> float:
    """Return the largest relative difference of the losses; fail if it exceeds rounding error."""
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    assert ours.keys() == theirs.keys(), (ours, theirs)
    error = max(abs(ours[key] - theirs[key]) / max(abs(theirs[key]), 1e-3) for key in theirs)
    assert error <= tolerance, f"the losses differ by {error:.1e}, more than {tolerance}"
    return error


def _show_plan(plan: Mapping[str, Any], layers: int) -> None:
    print(
        f"planned   {layers} layers: {plan['step_seconds']:.2f} s a step, "
        f"{plan['tokens_per_second']:,.0f} tokens/s, {plan['memory_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )


def _show_ours(found: Mapping[str, Any]) -> None:
    ours, error = found["ours"], found["plan_error"]
    print(
        f"measured  {found['layers']} layers: {ours['step_seconds']:.2f} s a step, "
        f"{ours['tokens_per_second']:,.0f} tokens/s, {ours['peak_bytes'] / 2**30:.2f} GiB; "
        f"the plan is off by {error['step_seconds']:+.0%} and {error['memory']:+.0%}",
        flush=True,
    )
    for cost in ours["top_costs"][:8]:
        print(f"  {cost['share']:6.1%} {cost['calls']:>7,} x {cost['kernel']}", flush=True)


def _show_compared(found: Mapping[str, Any]) -> None:
    print(
        f"theirs    {found['layers']} layers: {found['their_seconds']:.2f} s a step, "
        f"{found['their_peak_bytes'] / 2**30:.2f} GiB; ours is "
        f"{found['times_their_tokens_per_second']:.2f} times as fast "
        f"({found['times_by_processor_time']:.2f} by CPU time) with "
        f"{found['share_of_their_peak']:.2f} of the memory; losses agree to "
        f"{found['largest_relative_loss_difference']:.0e}",
        flush=True,
    )


def machine() -> dict[str, Any]:
    """Return the date, machine, versions and load of the measurement."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": date.today().isoformat(),
        "machine": gpu or f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure a preset, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument(
        "--layers", type=int, default=0, help="number of decoder layers; 0 tries the preset's"
    )
    parser.add_argument(
        "--steps", type=int, default=3, help="number of steps; the first is a warm-up"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for torch's default")
    parser.add_argument(
        "--same-micro-batches", action="store_true", help="use our micro-batch size for theirs too"
    )
    parser.add_argument("--output", type=Path, help="path of the JSON result")
    parser.add_argument("--part", choices=["plan", *SIDES], help="one part; `main` calls it")
    arguments = parser.parse_args()
    if arguments.part:
        child(arguments)
        return
    found = {**machine(), "preset": arguments.preset, **measure(arguments)}
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
