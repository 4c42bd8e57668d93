"""Planned time, memory and settings against counts by hand; needs no network or data."""

import dataclasses
import json
import logging

import pytest
import torch
from transformers import SolarOpenConfig
from typer.testing import CliRunner

from longred.cli import app
from longred.cost import fit
from longred.cost.flops import Flops, batches
from longred.cost.plan import (
    FP8_SPEEDUP,
    HOST_BANDWIDTH,
    TrainingPlan,
    flops_seconds,
    link_seconds,
    plan_training,
    step_seconds,
    update_seconds,
)
from longred.cost.recipe import choose_speeds, jobs, lengths_of, plan_recipe
from longred.cost.shape import SHAPES, ModelShape, named_config, shape_of
from longred.cost.speeds import GIB, Speeds, known
from longred.errors import PreflightError
from longred.method.job import TrainingJob
from longred.recipes import names
from longred.runs.record import load_config

LENGTHS = {"long": 32768, "short": 1024, "original": 8192}


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return shape_of(named_config("meta-llama/Meta-Llama-3-8B"))


def make_job(*overrides: str) -> TrainingJob:
    recipe = load_config("llama3-8b-32k", overrides)
    return next(iter(jobs(recipe, shape_of(named_config(recipe.model.path)))))


def make_plan(shape: ModelShape, speeds: Speeds, *overrides: str) -> TrainingPlan:
    return plan_training(shape, make_job(*overrides), LENGTHS, speeds)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
    ],
)
def test_the_named_models_have_the_published_numbers_of_parameters(
    name: str, parameters: int
) -> None:
    assert shape_of(named_config(name)).num_parameters == parameters


def test_every_packaged_recipe_has_its_models_shape() -> None:
    found = {load_config(name, []).model.path.replace("/", "--") for name in {*names()} - {"demo"}}
    assert found == {path.stem for path in SHAPES.glob("*.json")}
    assert named_config("someone/another-model") is None


def test_costs_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = ["plan", "llama3-8b-32k", "--gpus", "8", "--device", "h200"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "Meta-Llama-3-8B" in found["data"]["left_out"]
    assert found["cost"]["num_parameters"] == 8_030_261_248
    assert found["cost"]["trainings"][0]["fits"]
    assert "HF_HUB_OFFLINE" in found["data"]["left_out"]
    assert found["verdict"] == {"verdict": "fits", "why": []}
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("fits: longred-c needs 54.4 GiB and each of 8 h200 has 139.8 GiB")
    assert max(map(len, lines)) <= 80
    # What could not be looked at comes after the cost, and which window is claimed.
    order = ["cost", "training", "data: not looked at, model.path", "exports claim a window of"]
    found_at = [next(n for n, line in enumerate(lines) if line.startswith(o)) for o in order]
    assert found_at == sorted(found_at)
    assert "claim a window of 32,768 tokens" in shown.stdout
    alone = CliRunner().invoke(app, [*command, "--only", "data"])
    assert isinstance(alone.exception, PreflightError)


def test_attention_takes_the_papers_time() -> None:
    """The paper's rate counts five backward products per two forward ones; a plan counts four."""
    h100 = known("h100")
    forward = 8.0e12
    seconds = flops_seconds(Flops(attention_backward=2 * forward), 32768, h100)
    assert seconds == pytest.approx(2.5 * forward / (0.52 * 989e12))
    assert flops_seconds(Flops(attention_forward=forward), 32768, h100) == pytest.approx(
        forward / (0.545 * 989e12)
    )


def test_a_deterministic_training_is_planned_without_cudnn(shape: ModelShape) -> None:
    config = load_config("llama3-8b-32k", ["training.deterministic=true"])
    speeds = choose_speeds(config, shape, device="h200")
    assert speeds == known("h200", backend="flash_attention_2")
    config = load_config("llama3-8b-32k", [])
    assert choose_speeds(config, shape, device="h200") == known("h200")


def test_relations_take_float32_time() -> None:
    """float32 without TF32 runs at 67 TFLOP/s, bfloat16 at 989."""
    h200 = known("h200")
    ratio = flops_seconds(Flops(relations=1e15), 1024, h200) / flops_seconds(
        Flops(linear=1e15), 1024, h200
    )
    assert ratio == pytest.approx(989 / 67)


def test_eight_bits_speed_up_the_students_layers_alone(shape: ModelShape) -> None:
    job = make_job()
    rounded = dataclasses.replace(job, fp8=True)
    speeds, long = known("h200"), LENGTHS["long"]
    work = {b.bucket: b for b in batches(job, LENGTHS)}
    faster = {
        bucket: step_seconds(shape, job, [one], speeds)
        - step_seconds(shape, rounded, [one], speeds)
        for bucket, one in work.items()
    }
    layers, last = 2.0 * shape.num_linear, 2.0 * 14336 * 4096 * 32
    # The student's products take a third less time. With fp8, a recomputed layer also repeats its
    # last product.
    spared = (4 * layers - last) - (4 * layers) / FP8_SPEEDUP
    assert faster["long"] == pytest.approx(32 * long * spared / speeds.matmul_flops, rel=0.02)
    # The teacher's forward pass is not sped up.
    tokens = work["short"].step_tokens
    spared = 3 * layers * (1 - 1 / FP8_SPEEDUP)
    assert faster["short"] == pytest.approx(tokens * spared / speeds.matmul_flops, rel=0.02)


def test_what_sharded_processes_send(shape: ModelShape) -> None:
    """Weights are gathered twice in bf16 (the teacher's once), gradients reduced once in fp32."""
    job = dataclasses.replace(make_job(), parallel={"num_processes": 8})
    speeds = known("h200")
    long, short, _ = batches(job, LENGTHS)
    layers, head = 32 * 218_103_808, 128256 * 4096
    norms = (2 * 32 + 1) * 4096
    student = 2 * 2 * layers + 4 * (2 * head + norms) + 4 * (layers + 2 * head + norms)
    sent = 7 / 8 * student * long.count
    assert link_seconds(shape, job, long, speeds) == pytest.approx(sent / 380e9)
    sent = 7 / 8 * (student + 2 * layers + 4 * head) * short.count
    assert link_seconds(shape, job, short, speeds) == pytest.approx(sent / 380e9)
    alone = make_job()
    assert link_seconds(shape, alone, batches(alone, LENGTHS)[0], speeds) == 0
    # Communication costs time even where computation hides most of it.
    work = batches(job, LENGTHS)
    unlinked = dataclasses.replace(speeds, link_bandwidth=0.0)
    assert step_seconds(shape, job, work, speeds) > step_seconds(shape, job, work, unlinked)


def test_an_offloaded_state_crosses_both_ways_at_once(shape: ModelShape) -> None:
    seconds = update_seconds(shape, make_job("training.optimizer_offload=true"), known("h200"))
    assert seconds == pytest.approx(8 * shape.num_parameters / HOST_BANDWIDTH)
    assert update_seconds(shape, make_job(), known("h200")) < 0.1 * seconds


@pytest.mark.medium
def test_a_plan_fits_with_its_reserve(
    shape: ModelShape, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offload = "training.optimizer_offload=true"
    found = make_plan(shape, known("h200"), offload)
    assert found.reserve_bytes == pytest.approx(0.03 * 139.8 * GIB)
    least = found.memory_bytes / 0.97

    def fits(limit: float) -> bool:
        speeds = dataclasses.replace(known("h200"), memory_bytes=limit)
        return make_plan(shape, speeds, offload).fits

    assert fits(1.001 * least)
    assert not fits(0.999 * least)

    def start(limit: float) -> None:
        monkeypatch.setattr(fit, "memory_of", lambda device: limit)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fit.refuse_what_cannot_fit(
                shape, [(make_job(offload), LENGTHS)], torch.device("cuda"), num_here=1
            )

    start(1.001 * least)
    assert not caplog.messages
    start(0.999 * least)
    assert "may run out of memory" in caplog.messages[0]
    with pytest.raises(PreflightError, match="for CUDA itself"):
        start(0.8 * found.memory_bytes)


def test_a_recipes_lengths_are_these() -> None:
    assert lengths_of(load_config("llama3-8b-32k", []), make_job()) == LENGTHS


def test_a_search_for_factors_costs_forward_passes_at_the_target_window() -> None:
    shape, speeds = shape_of(named_config("meta-llama/Meta-Llama-3-8B")), known("h200")
    search = ["extension.method=longrope", "extension.rope_theta=null"]
    search += [f"extension.search.{key}" for key in ("num_rounds=5", "population=8", "num_rows=2")]
    plain, searched = (
        plan_recipe(load_config("llama3-8b-32k", overrides), shape, speeds)
        for overrides in (search[:2], search)
    )
    assert plain.extension == {"tokens": 0.0, "flops": 0.0, "seconds": 0.0}
    # The first round scores 8 candidates, the others 6 each, with two rows of 32,768 tokens.
    num_tokens = (8 + 4 * 6) * 2 * 32768
    assert searched.extension["tokens"] == num_tokens
    # 2 FLOPs a weight outside of embeddings and head, and 4 for each of d numbers of a key.
    weights = 8_030_261_248 - 2 * 128_256 * 4096
    attention = 32 * 4 * 4096 * (32768 + 1) / 2
    expected = num_tokens * (2 * weights + attention)
    assert searched.extension["flops"] == pytest.approx(expected, rel=1e-3)
    hours = searched.gpu_hours - plain.gpu_hours
    assert hours == pytest.approx(searched.extension["seconds"] / 3600, rel=1e-6)
    assert 0 < hours < 3
    assert searched.to_json()["extension"] == searched.extension


def test_a_model_of_experts_alone_has_a_shape() -> None:
    sizes = {"num_hidden_layers": 1, "n_routed_experts": 2, "num_experts_per_tok": 1}
    config = SolarOpenConfig(vocab_size=50, hidden_size=32, moe_intermediate_size=24, **sizes)
    assert not hasattr(config, "intermediate_size")
    assert shape_of(config).intermediate_size == 24
