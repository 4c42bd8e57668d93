"""A tiny training: a model, random blocks, and an undisturbed run to compare every other with."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from tiny_training import MakeJob

from longred.training.loop import train


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Other numbers of threads add in another order; these tests compare bits.
    torch.set_num_threads(1)


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
