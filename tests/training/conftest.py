"""Fixtures of the training tests: an uninterrupted run as reference, and a pool of processes."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from tiny_training import MakeJob

from longred.training.loop import train


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The number of threads changes the order of sums, and these tests compare bits.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def uninterrupted(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the result folder of an uninterrupted training."""
    return train(make_job(), tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="session")
def processes() -> multiprocessing.context.ForkServerContext:
    """Return a context whose processes have torch imported but not yet used."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longred.training.loop", "transformers.models.llama"])
    return context
