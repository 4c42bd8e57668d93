"""What each method reads: its buckets, its terms, and the settings of its identity."""

import pytest

from longred.config import TrainingConfig
from longred.method.methods import BUCKETS, METHODS, method_terms
from longred.objectives.table import OBJECTIVES

DISTILLATION = {
    "short_distill_weight",
    "short_to_long_weight",
    "attention_distill_weight",
    "long_distill_weight",
    "weighting",
}


@pytest.mark.parametrize("method", METHODS)
def test_terms_name_buckets_objectives_and_settings_that_exist(method: str) -> None:
    terms = METHODS[method].terms
    assert terms
    assert {term.bucket for term in terms} <= set(BUCKETS)
    assert {term.objective for term in terms} <= set(OBJECTIVES)
    assert {term.weight for term in terms if term.weight} <= set(TrainingConfig.model_fields)
    assert len({term.metric for term in terms}) == len(terms)
    # The teacher runs once per bucket, so a bucket's terms must agree on the kind of pass.
    for bucket in BUCKETS:
        kinds = {OBJECTIVES[term.objective].teacher for term in terms if term.bucket == bucket}
        assert len(kinds - {None}) <= 1


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("longred-c", DISTILLATION | {"sigma", "truncation", "ratio", "short_length"}),
        ("longred-u", DISTILLATION | {"ratio", "short_length"}),
        ("cpt", set()),
        ("mix-cpt", {"ratio", "short_length"}),
        ("cream", {"sigma", "truncation"}),
        ("pose", set()),
        ("pose-anywhere", set()),
        ("attention-distill", set()),
        ("recalibrate", set()),
        (
            "recalibrate-distill",
            {"short_distill_weight", "short_to_long_weight", "weighting", "ratio", "short_length"},
        ),
        ("merge", set()),
        ("lora", DISTILLATION | {"sigma", "truncation", "ratio", "short_length"}),
    ],
)
def test_settings_that_a_method_reads(method: str, read: set[str]) -> None:
    some_read = DISTILLATION | {"sigma", "truncation", "ratio", "short_length"}
    assert some_read - METHODS[method].unused_settings() == read


LOGITS = {"logit_distill_weight", "logit_distill_temperature"}
LATER = {"trained", "relation_heads", "decay_norms"} | LOGITS


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("longred-c", LATER),
        ("cpt", {"trained", "decay_norms"}),
        ("attention-only", {"decay_norms"}),
        ("attention-distill", {"trained", "decay_norms", "relation_heads"}),
        ("logit-distill", {"trained", "decay_norms"} | LOGITS),
        ("lora", LOGITS | {"relation_heads"}),
    ],
)
def test_later_settings_that_a_method_reads(method: str, read: set[str]) -> None:
    assert LATER - METHODS[method].unused_settings() == read


def test_adapters_carry_the_terms_of_another_method_and_read_what_it_reads() -> None:
    carried = method_terms("lora", "cream")
    assert carried.terms == METHODS["cream"].terms
    assert (carried.sigma, carried.trains_adapters) == (3.0, True)
    assert METHODS["cream"].unused_settings() - carried.unused_settings() == {"lora"}
    assert method_terms("pose", "cream") == METHODS["pose"]


def test_each_method_reads_its_own_buckets() -> None:
    buckets = {name: method.buckets() for name, method in METHODS.items()}
    assert buckets["longred-c"] == buckets["mix-cpt"] == BUCKETS
    assert buckets["cpt"] == buckets["merge"] == buckets["pose"] == ("long",)
    assert buckets["cream"] == buckets["pose-anywhere"] == buckets["attention-distill"]
    assert buckets["cream"] == ("original",)


def test_rows_are_cut_out_of_long_blocks_by_pose_alone() -> None:
    cut = [(name, b) for name, method in METHODS.items() for b in BUCKETS if method.cuts(b)]
    assert cut == [("pose", "long")]
    skipped = {name: method.skipped_bucket for name, method in METHODS.items()}
    assert skipped["longred-c"] == skipped["pose-anywhere"] == "original"
    assert skipped["cpt"] is skipped["attention-distill"] is None
