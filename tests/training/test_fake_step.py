"""Memory, FLOPs and products of the real training step on fake tensors, against the plan.

Per-layer figures are linear in the number of layers, so two depths give them exactly.
"""

import dataclasses

import pytest
from fake_step import FakeStep, measure_micro_batch, with_layers
from transformers import PreTrainedConfig

from longred.cost.flops import Batches, Flops, batches, needed_flops, recomputed_flops
from longred.cost.memory import batch_parts
from longred.cost.passes import elementwise_bytes
from longred.cost.recipe import jobs, lengths_of
from longred.cost.shape import ModelShape, named_config, shape_of
from longred.method.job import TrainingJob
from longred.runs.record import load_config

pytestmark = pytest.mark.slow

BUCKETS = ("long", "short", "original")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A recipe's training at some depth."""

    config: PreTrainedConfig
    shape: ModelShape
    job: TrainingJob
    work: dict[str, Batches]

    def peak_bytes(self, bucket: str) -> float:
        return sum(batch_parts(self.shape, self.job, self.work[bucket]).values())

    def flops(self, bucket: str) -> Flops:
        batch = self.work[bucket]
        both = needed_flops(self.shape, self.job, batch)
        both += recomputed_flops(self.shape, self.job, batch)
        return both * (batch.tokens / batch.step_tokens)

    def moved_bytes(self, bucket: str) -> float:
        batch = self.work[bucket]
        moved = elementwise_bytes(self.shape, self.job, batch)
        return moved * batch.tokens / batch.step_tokens

    def measure(self, bucket: str) -> FakeStep:
        return measure_micro_batch(self.config, self.job, bucket)


def planned(recipe: str, *overrides: str, layers: int | None = None) -> Planned:
    loaded = load_config(recipe, overrides)
    config = named_config(loaded.model.path)
    if layers is not None:
        config = with_layers(config, layers)
    shape = shape_of(config)
    job = next(iter(jobs(loaded, shape)))
    work = {batch.bucket: batch for batch in batches(job, lengths_of(loaded, job))}
    return Planned(config, shape, job, work)


def check(plan: Planned, bucket: str, step: FakeStep, *, memory: float = 0.08) -> None:
    flops = plan.flops(bucket)
    assert step.tokens == plan.work[bucket].tokens
    assert step.peak_bytes == pytest.approx(plan.peak_bytes(bucket), rel=memory)
    assert step.product_flops == pytest.approx(flops.linear + flops.head, rel=0.01)
    assert step.attention_forward == pytest.approx(flops.attention_forward, rel=0.001)
    # The backward kernel takes 2.5 times the forward FLOPs; the plan counts 2 times.
    assert step.attention_backward == pytest.approx(1.25 * flops.attention_backward, rel=0.001)


@pytest.mark.parametrize("bucket", BUCKETS)
def test_the_whole_model_needs_what_is_planned(bucket: str) -> None:
    """Llama-3-8B, 32 layers, as the recipe sets it."""
    plan = planned("llama3-8b-32k")
    check(plan, bucket, plan.measure(bucket))


@pytest.mark.parametrize(
    ("bucket", "overrides", "products"),
    [
        # 7 forward, 6 recomputed (all but the last), 14 backward.
        ("long", (), 27),
        ("long", ("training.activation_checkpointing=full",), 27),
        ("long", ("training.fused=false",), 27),
        # 7 forward, 14 backward, and 7 of the teacher.
        ("short", (), 21 + 7),
        ("original", ("training.fused=false",), 21 + 7),
        ("original", ("training.uncheckpointed_tokens=0",), 27 + 7),
    ],
)
def test_no_product_is_taken_more_often_than_designed(
    bucket: str, overrides: tuple[str, ...], products: int
) -> None:
    plans = [planned("llama3-8b-32k", *overrides, layers=layers) for layers in (1, 3)]
    less, more = (plan.measure(bucket) for plan in plans)
    assert more.products - less.products == 2 * products
    # The traffic of a layer's other operators is as planned.
    moved = more.moved_bytes - less.moved_bytes
    said = plans[1].moved_bytes(bucket) - plans[0].moved_bytes(bucket)
    distilled = len(plans[1].job.distill_layers) != len(plans[0].job.distill_layers)
    assert distilled or moved == pytest.approx(said, rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("llama3-8b-32k", ("training.fused=false",)),
        ("llama3-8b-32k", ("training.activation_checkpointing=none",)),
        ("llama3-8b-32k", ("training.uncheckpointed_tokens=0",)),
        ("llama3-8b-32k", ("training.method=lora", "training.uncheckpointed_tokens=0")),
        ("llama3-8b-32k", ("training.trained=attention",)),
        ("llama3-8b-32k", ("training.method=logit-distill",)),
        ("llama3-8b-32k", ("training.logit_distill_weight=1",)),
        ("llama3-8b-32k", ("training.trained=attention", "training.fused=false")),
        ("qwen2.5-7b-128k", ()),
        ("mistral-7b-128k", ()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_other_settings_and_models_need_what_is_planned(
    recipe: str, overrides: tuple[str, ...]
) -> None:
    plan = planned(recipe, *overrides, layers=4)
    for bucket in BUCKETS:
        check(plan, bucket, plan.measure(bucket))
