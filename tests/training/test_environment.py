"""How a trainer configures its process before the first use of a GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import MakeJob

from longred.errors import PreflightError
from longred.training.machine import MACHINE_METRICS, environment_of, prepare
from longred.training.trainer import Trainer
from longred.training.world import joined

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        # Set first, so that monkeypatch also removes what the test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def test_memory_grows_in_segments_unless_the_user_chose(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(make_job())
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    prepare(make_job())
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_processes_choose_before_they_ask_for_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    def asked(*_: object) -> torch.device:
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        raise PreflightError("no GPU")

    monkeypatch.setattr("longred.training.world.choose_device", asked)
    with pytest.raises(PreflightError, match="no GPU"), joined("cuda"):
        pass


def test_a_deterministic_training_takes_the_same_steps(make_job: MakeJob, tmp_path: Path) -> None:
    found = {}
    for deterministic in (False, True):
        job = make_job(deterministic=deterministic, num_steps=2)
        trainer = Trainer(job, tmp_path / str(deterministic))
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        trainer.train_step()
        found[deterministic] = dict(trainer.train_step())
        for name in MACHINE_METRICS:
            found[deterministic].pop(name, None)
        environment = environment_of(torch.device("cpu"), job)
        assert environment["deterministic"] is deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert found[True] == found[False]
