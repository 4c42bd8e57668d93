"""What a training's digest depends on: exactly the settings that can change its student."""

from typing import Any

import pytest

from longred.config import TrainingConfig
from longred.stages.training import settings_of

LONGRED = {
    *("betas", "attention_distill_weight", "decay_steps", "dtype", "epsilon", "fp8"),
    *("learning_rate", "long_distill_weight", "mask_documents", "max_grad_norm", "method"),
    *("micro_batch_tokens", "min_learning_rate", "num_steps", "optimizer", "original_window"),
    *("ratio", "schedule", "seed", "short_distill_weight", "short_length"),
    *("short_micro_batch_tokens", "short_to_long_weight", "sigma", "step_tokens"),
    *("target_window", "truncation", "warmup_steps", "weight_decay", "weighting"),
}
"""Settings of longred-c in digests before `trained` came."""


def names(method: str, **values: Any) -> set[str]:
    return set(settings_of(TrainingConfig(**values), method))


def test_artifacts_of_earlier_versions_are_found() -> None:
    assert names("longred-c") == LONGRED
    assert names("lora") == LONGRED | {"lora"}


def test_artifacts_of_another_method_of_the_same_name_are_not_found() -> None:
    assert settings_of(TrainingConfig(), "pose")["method_version"] == 2
    assert names("pose") - names("pose-anywhere") == {"method_version"}


@pytest.mark.parametrize(
    ("method", "values", "change", "changes"),
    [
        ("cpt", {}, {"trained": "attention"}, True),
        ("longred-c", {}, {"trained": "attention"}, True),
        ("attention-only", {}, {"trained": "attention"}, False),
        ("longred-c", {}, {"logit_distill_weight": 0.0}, False),
        ("longred-c", {}, {"logit_distill_temperature": 2.0}, False),
        ("longred-c", {}, {"logit_distill_weight": 1.0}, True),
        ("longred-c", {"logit_distill_weight": 1.0}, {"logit_distill_temperature": 2.0}, True),
        ("logit-distill", {}, {"logit_distill_weight": 1.0}, False),
        ("logit-distill", {}, {"logit_distill_weight": 2.0}, True),
        ("logit-distill", {}, {"logit_distill_temperature": 2.0}, True),
        ("logit-distill", {}, {"short_distill_weight": 2.0}, False),
        ("cpt", {}, {"logit_distill_weight": 2.0}, False),
        ("attention-distill", {}, {"relation_heads": "query"}, True),
        ("longred-c", {}, {"relation_heads": "query"}, False),
        ("longred-c", {"attention_distill_weight": 1.0}, {"relation_heads": "query"}, True),
        ("cream", {}, {"relation_heads": "query"}, False),
        ("cpt", {}, {"decay_norms": True}, True),
        ("attention-only", {}, {"decay_norms": True}, True),
        ("lora", {}, {"decay_norms": True}, False),
    ],
)
def test_a_digest_changes_where_the_student_does(
    method: str, values: dict[str, Any], change: dict[str, Any], changes: bool
) -> None:
    before = settings_of(TrainingConfig(**values), method)
    after = settings_of(TrainingConfig(**{**values, **change}), method)
    assert (before != after) is changes
