"""A tiny training: a model, random blocks, and an undisturbed run to compare every other with."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from tiny_training import ORIGINAL, TARGET, MakeJob, write_blocks, write_teacher

from longred.extension import write_extension
from longred.methods import METHODS
from longred.training.job import TrainingJob
from longred.training.loop import train


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Other numbers of threads add in another order; these tests compare bits.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_job(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Make jobs on the same tiny model and blocks; keyword arguments replace values."""
    folder = tmp_path_factory.mktemp("training-inputs")
    write_blocks(folder / "data")
    write_teacher(tiny_model_folder, folder / "teacher")
    write_extension(
        folder / "teacher",
        folder / "student",
        digest="0",
        method="abf",
        original_window=ORIGINAL,
        target_window=TARGET,
        rope_theta=80000.0,
    )

    def make(**values: object) -> TrainingJob:
        method = values.get("method", "longred-c")
        recipe = METHODS.get(method, METHODS["longred-c"])
        lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "objectives": "longred-c"}
        all_rows = {"long": 2, "short": 5, "original": 3}
        rows = {bucket: all_rows[bucket] for bucket in recipe.buckets()}
        defaults = {
            "method": method,
            "data_folder": str(folder / "data"),
            "student_folder": str(folder / "student"),
            "teacher_folder": str(folder / "teacher"),
            "data_digest": "d0",
            "rows": rows,
            "original_window": ORIGINAL,
            "target_window": TARGET,
            "num_steps": 12,
            "distill_layers": (1, 3),
            "micro_batch_tokens": 128,
            "learning_rate": 1e-3,
            "warmup_steps": 3,
            "lora": lora if method == "lora" else {},
            "dtype": "float32",
            "seed": 3,
            "save_every_steps": 5,
            "num_threads": 1,
            "uncheckpointed_tokens": 0,
            "device": "cpu",
        }
        return TrainingJob.from_json({**defaults, **values})

    return make


@pytest.fixture(scope="session")
def uninterrupted(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of a training that nothing disturbed."""
    return train(make_job(), tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Start processes that have torch loaded already and never ran it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longred.training.loop", "transformers.models.llama"])
    return context
