"""A job survives a JSON round trip and refuses invalid values."""

import dataclasses
import json

import pytest
from tiny_training import MakeJob

from longred.config import TrainingConfig
from longred.errors import ConfigError
from longred.method.job import TrainingJob


def test_json_round_trip(make_job: MakeJob):
    job = make_job(betas=(0.8, 0.9))
    assert TrainingJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_identity_leaves_out_what_cannot_change_the_result(make_job: MakeJob):
    job = make_job()
    same = dataclasses.replace(
        job, save_every_steps=1, num_checkpoints=9, num_threads=2, device="cuda", data_folder="/x"
    )
    assert same.identity() == job.identity()
    for name, value in (("seed", 4), ("data_digest", "d1"), ("distill_layers", (3,))):
        assert dataclasses.replace(job, **{name: value}).identity() != job.identity()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "longred"}, "training.method: 'longred' is not one of longred-c"),
        ({"rows": {"long": 1}}, "training.rows: longred-c needs rows of long, short, original"),
        ({"rows": {"long": 1, "short": 0, "original": 1}}, "training.rows"),
        ({"ratio": {"long": 1}}, "training.ratio"),
        ({"distill_layers": ()}, "training.distill_layers"),
        ({"num_steps": 0}, "training.num_steps: must be 1 or more, got 0"),
        ({"dtype": "float16"}, "training.dtype: 'float16' is not one of float32, bfloat16"),
        ({"device": "tpu"}, "training.device"),
        ({"trained": "mlp"}, "training.trained: 'mlp' is not one of all, attention"),
        ({"logit_distill_weight": -1.0}, "training.logit_distill_weight: must be 0 or more"),
        ({"optimizer": "sgd"}, "training.optimizer: 'sgd' is not one of adamw, adamw8bit"),
        ({"activation_checkpointing": "some"}, "training.activation_checkpointing"),
        ({"mlp_tile_tokens": -1}, "training.mlp_tile_tokens: must be 0 or more, got -1"),
        ({"spike_mads": 0.0}, "training.spike_mads: must be above 0"),
        ({"lr": 1.0}, "training.lr: unknown value"),
    ],
)
def test_bad_values_are_named(values, message: str, make_job: MakeJob):
    with pytest.raises(ConfigError, match=message):
        make_job(**values)


def test_the_weight_of_logits_is_the_methods_own_unless_given(make_job: MakeJob):
    lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj"], "objectives": "logit-distill"}
    for values, weight, is_used in (
        ({}, 0.0, False),
        ({"logit_distill_weight": 2.0}, 2.0, True),
        ({"method": "logit-distill"}, 1.0, True),
        ({"method": "lora", "lora": lora}, 1.0, True),
        ({"method": "logit-distill", "logit_distill_weight": 0.0}, 0.0, True),
        ({"method": "cpt", "logit_distill_weight": 2.0}, 2.0, False),
    ):
        job = make_job(**values)
        assert (job.logit_distill_weight, job.compares_logits()) == (weight, is_used)
        assert TrainingJob.from_json(job.to_json()) == job


def test_missing_values_are_named():
    with pytest.raises(ConfigError, match=r"training\.data_digest: is required"):
        TrainingJob.from_json({"method": "cpt"})


def test_every_setting_of_the_recipe_reaches_the_job():
    settings = set(TrainingConfig.model_fields)
    not_of_a_job = {"baselines", "step_tokens", "short_length", "merge_weight", "max_epochs"}
    assert settings - not_of_a_job <= TrainingJob.fields()
