"""Several processes take the steps that one takes alone, however weights and rows are divided."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import MakeJob, run_together

from longred.tracking import Journal
from longred.training.loop import train
from longred.training.meter import MACHINE_METRICS

ROWS = {"long": 2, "short": 4, "original": 4}
ALL_TERMS = {"long_distill_weight": 3.0, "attention_distill_weight": 2.0}


def metrics(folder: Path) -> dict[tuple[int, str], float]:
    lines = Journal(folder / "metrics.jsonl").read()
    return {
        (line["step"], line["key"]): line["value"]
        for line in lines
        if line["key"] not in MACHINE_METRICS
    }


def assert_equal_but_for_the_last_bits(result: Path, reference: Path) -> None:
    found, expected = metrics(result), metrics(reference)
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-12), key
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result, reference))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, rtol=1e-5, atol=1e-5), name
        assert (ours[name] - weight).norm() <= 1e-5 * weight.norm(), name


@pytest.mark.parametrize(
    ("values", "parallel", "num_processes"),
    [
        (ALL_TERMS, {}, 2),
        ({**ALL_TERMS, "activation_checkpointing": "full"}, {"sequence_parallel": 2}, 2),
        ({"mask_documents": False, **ALL_TERMS}, {"sequence_parallel": 2, "replicas": 2}, 4),
        ({"method": "mix-cpt", "micro_batch_tokens": 1}, {"replicas": 2}, 2),
        ({"method": "lora"}, {}, 2),
    ],
    ids=["sharded", "sequence-parallel", "hsdp-and-sequence-parallel", "replicated", "lora"],
)
def test_several_processes_equal_one(
    values, parallel, num_processes, make_job: MakeJob, processes, tmp_path: Path
):
    rows = {b: n for b, n in ROWS.items() if b in make_job(**values).rows}
    job = make_job(
        rows=rows, num_steps=5, parallel={"num_processes": num_processes, **parallel}, **values
    )
    codes = run_together(processes, job, tmp_path / "several", faults=[None] * num_processes)
    assert codes == [0] * num_processes
    alone = train(make_job(rows=rows, num_steps=5, **values), tmp_path / "alone")
    assert_equal_but_for_the_last_bits(tmp_path / "several/result", alone)


def test_an_unchanged_student_is_the_teacher_in_every_process(
    make_job: MakeJob, processes, tmp_path: Path
):
    job = make_job(
        rows=ROWS,
        num_steps=1,
        dtype="bfloat16",
        attention_distill_weight=1.0,
        student_folder=make_job().teacher_folder,
        parallel={"num_processes": 2, "sequence_parallel": 2},
    )
    assert run_together(processes, job, tmp_path) == [0, 0]
    found = metrics(tmp_path / "result")
    assert found[1, "train/short_distill_loss"] == 0.0
    assert found[1, "train/attention_distill_loss"] == 0.0
