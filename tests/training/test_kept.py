"""Students kept during a training: which, in what form, and after interruptions."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import MakeJob, assert_same_run, run, weights_digest
from transformers import AutoModelForCausalLM

from longred.errors import ConfigError
from longred.method.job import TrainingJob
from longred.training import result
from longred.training.loop import train

STEPS = (3, 7)


@pytest.fixture(scope="module")
def keeping(make_job: MakeJob) -> TrainingJob:
    return make_job(keep_steps=STEPS, num_checkpoints=1)


@pytest.fixture(scope="module")
def kept(keeping: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(keeping, tmp_path_factory.mktemp("keeping"))


def folders(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "kept").iterdir())


def test_a_kept_student_is_the_one_of_a_training_that_ends_there(
    kept: Path, uninterrupted: Path, make_job: MakeJob, tmp_path: Path
):
    assert folders(kept) == ["step-000003", "step-000007"]
    shorter = train(make_job(num_steps=3), tmp_path)
    assert weights_digest(kept / "kept/step-000003") == weights_digest(shorter)
    assert weights_digest(kept / "kept/step-000007") != weights_digest(shorter)
    # Keeping students does not change the training.
    assert_same_run(kept, uninterrupted)


def test_it_is_a_plain_model_folder(kept: Path):
    folder = kept / "kept/step-000007"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(
        model.model.layers[1].mlp.up_proj.weight, saved["model.layers.1.mlp.up_proj.weight"]
    )
    own = {path.name for path in kept.iterdir() if path.is_file()} - {
        "training.json",
        "metrics.jsonl",
    }
    assert {path.name for path in folder.iterdir()} == own


def test_adapters_are_merged_into_it(make_job: MakeJob, tmp_path: Path):
    job = make_job(method="lora", num_steps=3, keep_steps=[2])
    folder = train(job, tmp_path / "whole") / "kept/step-000002"
    shorter = train(dataclasses.replace(job, num_steps=2, keep_steps=()), tmp_path / "shorter")
    assert weights_digest(folder) == weights_digest(shorter)


@pytest.mark.medium
@pytest.mark.parametrize("fault", ["kill@4", "kill@8", "terminate@7"])
def test_it_survives_what_interrupts_the_training(
    fault, keeping: TrainingJob, kept: Path, processes, tmp_path: Path
):
    assert run(processes, keeping, tmp_path, fault=fault) != 0
    again = train(keeping, tmp_path)
    assert_same_run(again, kept)
    for name in folders(kept):
        assert weights_digest(again / "kept" / name) == weights_digest(kept / "kept" / name)
    assert folders(again) == folders(kept)


@pytest.mark.medium
def test_one_that_was_not_whole_is_written_again(
    keeping: TrainingJob, kept: Path, processes, tmp_path: Path
):
    child = processes.Process(target=_killed_while_keeping, args=(keeping.to_json(), str(tmp_path)))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert folders(tmp_path) == [".tmp-step-000007", "step-000003"]
    again = train(keeping, tmp_path)
    assert folders(again) == folders(kept)
    assert weights_digest(again / "kept/step-000007") == weights_digest(kept / "kept/step-000007")


def _killed_while_keeping(values: dict, work: str) -> None:
    torch.set_num_threads(1)
    write = result.write_student

    def write_student(trainer, folder: Path) -> None:
        write(trainer, folder)
        if trainer.step == STEPS[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    result.write_student = write_student
    train(TrainingJob.from_json(values), Path(work))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([12], "[12] do not lie before the last step"),
        ([0, 3], "[0] do not lie before"),
        ([7, 3], "must rise"),
        ([3, 3], "must rise"),
    ],
)
def test_wrong_steps_are_refused(steps, words, make_job: MakeJob):
    with pytest.raises(ConfigError) as error:
        make_job(keep_steps=steps)
    assert str(error.value).startswith("training.keep_steps: ")
    assert words in str(error.value)
    make_job(keep_steps=[1, 11])
