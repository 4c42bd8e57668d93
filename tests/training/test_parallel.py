"""Several processes take the same steps as one, for every split of weights and rows."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_architectures import CASES
from tiny_training import ORIGINAL, TARGET, MakeJob, assert_same_run, run, run_together
from transformers import AutoModelForCausalLM

from longred.errors import ConfigError, MismatchError
from longred.method.job import TrainingJob
from longred.method.layout import Layout
from longred.models.architectures import sequence_problem
from longred.models.extension import write_extension
from longred.models.load import load_config
from longred.objectives.table import first_window
from longred.store.journal import Journal
from longred.training.loop import train
from longred.training.machine import MACHINE_METRICS
from longred.training.step import documents_of

ROWS = {"long": 2, "short": 4, "original": 4}
ALL_TERMS = {
    "long_distill_weight": 3.0,
    "attention_distill_weight": 2.0,
    "logit_distill_weight": 1.0,
}

SAVERS = {"activation_checkpointing": "selective", "optimizer_offload": True}


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
    for place in (".", *(f"kept/{kept.name}" for kept in reference.glob("kept/*"))):
        assert_close_weights(result / place, reference / place)
        ours, theirs = (sorted(p.name for p in (f / place).iterdir()) for f in (result, reference))
        assert ours == theirs
        for name in ("config.json", "generation_config.json"):
            assert (result / place / name).read_bytes() == (reference / place / name).read_bytes()


def assert_close_weights(result: Path, reference: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result, reference))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # AdamW moves a weight by its gradient's sign, however small the gradient is.
        assert torch.allclose(ours[name], weight, rtol=1e-5, atol=2e-5), name
        # Biases start at zero and are not yet larger than the rounding of their gradients.
        assert (ours[name] - weight).norm() <= 1e-5 * max(weight.norm(), 1e-2), name


@pytest.mark.medium
@pytest.mark.parametrize(
    ("values", "parallel", "num_processes"),
    [
        (
            {**ALL_TERMS, "weights": "auto", "weights_every_steps": 2, "keep_steps": [2]},
            {},
            2,
        ),
        ({**ALL_TERMS, **SAVERS, "mlp_tile_tokens": 16}, {"sequence_parallel": 2}, 2),
        ({"mask_documents": False, **ALL_TERMS}, {"sequence_parallel": 2, "replicas": 2}, 4),
        (
            {"method": "mix-cpt", "micro_batch_tokens": 1, "activation_checkpointing": "full"},
            {"replicas": 2},
            2,
        ),
        ({"method": "lora", **SAVERS}, {}, 2),
        # Whole single rows, so that bfloat16 rounds the same products; later steps diverge.
        (
            {
                "dtype": "bfloat16",
                "num_steps": 2,
                "micro_batch_tokens": 1,
                "activation_checkpointing": "selective",
            },
            {},
            2,
        ),
        ({"method": "attention-only", "keep_steps": [2], **SAVERS}, {"sequence_parallel": 2}, 2),
        (
            {
                "trained": "attention",
                "dtype": "bfloat16",
                "num_steps": 2,
                "micro_batch_tokens": 1,
                "mlp_tile_tokens": 16,
                "logit_distill_weight": 1.0,
            },
            {},
            2,
        ),
        ({"method": "pose"}, {}, 2),
        ({"method": "recalibrate-distill", "decay_norms": True}, {}, 2),
    ],
    ids=[
        *("sharded", "sequence-parallel", "hsdp", "replicated", "lora", "bfloat16"),
        *("attention-only", "attention-bfloat16", "pose", "recalibrate-distill"),
    ],
)
def test_several_processes_equal_one(
    values, parallel, num_processes, make_job: MakeJob, processes, tmp_path: Path
):
    rows = {b: n for b, n in ROWS.items() if b in make_job(**values).rows}
    values = {"num_steps": 5, "rows": rows, **values}
    job = make_job(parallel={"num_processes": num_processes, **parallel}, **values)
    codes = run_together(processes, job, tmp_path / "several", faults=[None] * num_processes)
    assert codes == [0] * num_processes
    alone = train(make_job(**values), tmp_path / "alone")
    assert_equal_but_for_the_last_bits(tmp_path / "several/result", alone)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("case", "trained", "degree"),
    [
        *((case, "all", 2) for case in ("qwen2-window", "gemma3", "mixtral", "deepseek-v3")),
        ("llama-drope", "all", 2),
        ("llama-mixed", "all", 1),
        ("qwen2-window", "attention", 2),
        ("deepseek-v3", "attention", 2),
    ],
)
def test_other_models_on_several_processes(
    case, trained, degree, make_job: MakeJob, tiny_model_folder: Path, processes, tmp_path: Path
):
    make_config, method, settings = CASES[case]
    original, student = tmp_path / "original", tmp_path / "student"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(make_config()).save_pretrained(original)
    for path in tiny_model_folder.glob("tokenizer*"):
        shutil.copy(path, original)
    windows = {"original_window": ORIGINAL, "target_window": TARGET}
    write_extension(original, student, digest="0", method=method, **windows, **settings)
    values = {
        "rows": ROWS,
        "num_steps": 3,
        "learning_rate": 1e-4,
        "long_distill_weight": 1.0,
        # Mixed windows begin as their teacher on short rows: a KL of nothing but rounding.
        "logit_distill_weight": 0.0 if case == "llama-mixed" else 1.0,
        "trained": trained,
        "teacher_folder": str(original),
        "student_folder": str(student),
    }
    job = make_job(parallel={"num_processes": 2, "sequence_parallel": degree}, **values)
    assert run_together(processes, job, tmp_path / "two") == [0, 0]
    alone = train(make_job(**values), tmp_path / "one")
    assert_equal_but_for_the_last_bits(tmp_path / "two/result", alone)


@pytest.fixture(scope="module")
def two_job(make_job: MakeJob) -> TrainingJob:
    """Return a job of eight steps for two processes, saved after the third and the sixth."""
    return make_job(rows=ROWS, num_steps=8, save_every_steps=3)


@pytest.fixture(scope="module")
def undisturbed(two_job: TrainingJob, processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the result of two uninterrupted processes."""
    work = tmp_path_factory.mktemp("undisturbed")
    assert run_together(processes, two_job, work) == [0, 0]
    return work / "result"


def saved(work: Path) -> list[str]:
    return sorted(path.name for path in (work / "checkpoints").iterdir())


@pytest.mark.medium
def test_a_killed_process_ends_the_others_and_any_number_goes_on(
    two_job: TrainingJob, undisturbed: Path, processes, tmp_path: Path
):
    codes = run_together(processes, two_job, tmp_path / "two", faults=[None, "kill@5"])
    assert codes[1] == -9
    assert codes[0] == 1, "the other must exit by itself, with an error"
    assert saved(tmp_path / "two") == ["step-000003"]
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert run_together(processes, two_job, tmp_path / "two") == [0, 0]
    assert_same_run(tmp_path / "two/result", undisturbed)
    assert_equal_but_for_the_last_bits(train(two_job, tmp_path / "one"), undisturbed)


@pytest.mark.medium
def test_several_processes_go_on_where_one_stopped(
    two_job: TrainingJob, undisturbed: Path, processes, tmp_path: Path
):
    assert run(processes, two_job, tmp_path, fault="kill@4") == -9
    assert run_together(processes, two_job, tmp_path) == [0, 0]
    assert_equal_but_for_the_last_bits(tmp_path / "result", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "exit_code", "left"),
    [
        ("terminate@4", 143, ["step-000003", "step-000004"]),
        ("terminate-in-step@5", 143, ["step-000003", "step-000004"]),
        ("disk-full@4", 4, [".tmp-step-000006", "step-000003"]),
        ("nan@5", 5, ["step-000003"]),
        ("kill-in-sharded-save@6", -9, [".tmp-step-000006", "step-000003"]),
    ],
)
def test_what_disturbs_one_process_ends_all_and_loses_nothing(
    fault, exit_code, left, two_job: TrainingJob, undisturbed: Path, processes, tmp_path: Path
):
    codes = run_together(processes, two_job, tmp_path, faults=[None, fault])
    assert codes == ([1, -9] if exit_code == -9 else [exit_code, exit_code])
    assert saved(tmp_path) == left
    assert run_together(processes, two_job, tmp_path) == [0, 0]
    assert_same_run(tmp_path / "result", undisturbed)


@pytest.mark.medium
def test_a_damaged_file_of_one_process_is_noticed(
    two_job: TrainingJob, undisturbed: Path, processes, tmp_path: Path
):
    assert run_together(processes, two_job, tmp_path, faults=[None, "kill@7"])[1] == -9
    path = tmp_path / "checkpoints/step-000006/optimizer-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run_together(processes, two_job, tmp_path) == [0, 0]
    assert saved(tmp_path) == ["corrupt-step-000006", "step-000006", "step-000008"]
    assert_same_run(tmp_path / "result", undisturbed)


@pytest.mark.slow
def test_eight_bit_moments_go_on_with_as_many_processes_alone(
    make_job: MakeJob, processes, tmp_path: Path
):
    job = make_job(
        rows=ROWS, num_steps=4, save_every_steps=2, optimizer="adamw8bit", optimizer_offload=True
    )
    assert run_together(processes, job, tmp_path / "whole") == [0, 0]
    assert run_together(processes, job, tmp_path / "cut", faults=["kill@3", None])[0] == -9
    shutil.copytree(tmp_path / "cut", tmp_path / "one")
    with pytest.raises(MismatchError, match="belong to the 2 processes that wrote them"):
        train(job, tmp_path / "one")
    assert run_together(processes, job, tmp_path / "cut") == [0, 0]
    assert_same_run(tmp_path / "cut/result", tmp_path / "whole/result")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"parallel": {"sequence_parallel": 2}},
            r"training\.parallel\.sequence_parallel: 2 does not divide the number of processes",
        ),
        ({"parallel": {"replicas": 0}}, r"training\.parallel\.replicas: must be 1 or more, got 0"),
        (
            {"method": "pose", "parallel": {"num_processes": 2, "sequence_parallel": 2}},
            r"training\.parallel\.sequence_parallel: 2 processes would share long rows, .* pose",
        ),
        ({"parallel": {"copies": 2}}, r"training\.parallel\.copies: unknown value"),
    ],
)
def test_a_division_that_cannot_work_is_refused(values, problem, make_job: MakeJob):
    with pytest.raises(ConfigError, match=problem):
        make_job(**values)


def test_rows_that_the_processes_cannot_divide_are_refused():
    layout = Layout(num_processes=4, sequence_parallel=4)
    assert layout.problem() is None
    assert layout.rows_problem("long", 1, 64) is None
    assert "4 does not divide the 66 tokens of a long row" in layout.rows_problem("long", 1, 66)
    problem = layout.rows_problem("original", 6, 64)
    assert problem.startswith(
        "training.parallel.num_processes: 4 processes cannot divide the 6 rows"
    )
    assert "training.step_tokens" in problem


def test_a_model_whose_rows_cannot_be_shared_is_refused(tiny_model_folder: Path):
    config = load_config(tiny_model_folder)
    assert sequence_problem(config, 2) is None
    # Each of two key heads is repeated for two of four processes; three have no equal share.
    assert sequence_problem(config, 4) is None
    assert "3 does not divide the model's 4 query heads" in sequence_problem(config, 3)
    config.rope_parameters = {**config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    assert "rope type dynamic" in sequence_problem(config, 2)
    assert sequence_problem(config, 1) is None


@pytest.mark.parametrize("document_ids", [None, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])
@pytest.mark.parametrize("window", [2, 12])
def test_each_process_shows_the_teacher_the_documents_of_its_tokens(document_ids, window):
    documents = None if document_ids is None else torch.tensor([document_ids])
    shown = first_window(torch.zeros(1, 12, dtype=torch.long), documents, window)
    ids = document_ids or [0] * 12
    for start in range(0, 12, 3):
        own = torch.zeros_like(shown)
        own[:, start : start + 3] = shown[:, start : start + 3]
        found = documents_of(own, shown, documents)[0].tolist()
        touched = {ids[t] for t in range(start, start + 3) if shown[0, t]}
        expected = [bool(shown[0, t]) and ids[t] in touched for t in range(12)]
        assert found == (expected if touched else [True] + [False] * 11)


@pytest.fixture
def fp8_job(make_job: MakeJob) -> TrainingJob:
    """Return a job of two fp8 steps, one row at a time, so that each row has its own scales."""
    values = {"dtype": "bfloat16", "micro_batch_tokens": 1, "num_steps": 2}
    return make_job(fp8=True, rows=ROWS, **values)


@pytest.mark.slow
def test_eight_bit_floats_on_several_processes(fp8_job: TrainingJob, processes, tmp_path: Path):
    assert run_together(processes, fp8_job, tmp_path / "two", faults=["fp8@0", "fp8@0"]) == [0, 0]
    assert run(processes, fp8_job, tmp_path / "one", fault="fp8@0") == 0
    assert_equal_but_for_the_last_bits(tmp_path / "two/result", tmp_path / "one/result")
    exact = dataclasses.replace(fp8_job, fp8=False)
    plain = metrics(train(exact, tmp_path / "exact"))[1, "train/long_loss"]
    assert metrics(tmp_path / "two/result")[1, "train/long_loss"] != plain


@pytest.mark.medium
def test_eight_bit_floats_that_are_too_rough_in_one_process_end_all(
    fp8_job: TrainingJob, processes, tmp_path: Path
):
    faults = ["fp8@0", "fp8-too-rough@0"]
    assert run_together(processes, fp8_job, tmp_path, faults=faults) == [3, 3]
    assert not (tmp_path / "result").exists()
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.medium
def test_an_unchanged_student_is_the_teacher_in_every_process(
    make_job: MakeJob, processes, tmp_path: Path
):
    job = make_job(
        rows=ROWS,
        num_steps=1,
        dtype="bfloat16",
        attention_distill_weight=1.0,
        logit_distill_weight=1.0,
        student_folder=make_job().teacher_folder,
        parallel={"num_processes": 2, "sequence_parallel": 2},
    )
    assert run_together(processes, job, tmp_path) == [0, 0]
    found = metrics(tmp_path / "result")
    assert found[1, "train/short_distill_loss"] == 0.0
    assert found[1, "train/attention_distill_loss"] == 0.0
    assert found[1, "train/short_logit_loss"] == 0.0
