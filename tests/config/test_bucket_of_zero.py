"""`data.ratio` with buckets of 0: what each method makes of it, and the size of a step."""

from typing import Any

import pytest
from pydantic import ValidationError

from longred.config import RunConfig
from longred.cost.epochs import epochs_of

ONLY_SHORT = {"long": 0, "short": 1, "original": 0}
NO_ORIGINAL = {"long": 3, "short": 2, "original": 0}


def make(ratio: dict[str, int], method: str, **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "own",
            "original_window": 4096,
            "target_window": 16384,
            "data": {
                "num_tokens": 10**8,
                "ratio": ratio,
                "sources": [{"name": "own", "kind": "library", "buckets": {"long": 1, "short": 1}}],
            },
            "training": {"method": method, **training},
        }
    )


def test_a_step_holds_the_other_buckets_in_their_ratio() -> None:
    config = make(NO_ORIGINAL, "mix-cpt", baselines=["cpt", "merge"])
    training = config.training
    assert training.recipe("mix-cpt").buckets() == ("long", "short")
    long, short = training.bucket_tokens("mix-cpt").values()
    assert (long / short, long + short) == (1.5, training.step_tokens)
    assert set(training.rows("mix-cpt")) == {"long", "short"}
    read = {(one.method, one.bucket): one.times for one in epochs_of(config)}
    assert set(read) == {("mix-cpt", "long"), ("mix-cpt", "short"), ("cpt", "long")}
    assert all(0.9 < times < 1.8 for times in read.values())


@pytest.mark.parametrize(
    ("ratio", "method", "words"),
    [
        (NO_ORIGINAL, "longred-c", "data.ratio: original is 0, and longred-c distils on it"),
        (NO_ORIGINAL, "lora", "data.ratio: original is 0, and lora distils on it"),
        (NO_ORIGINAL, "cream", "data.ratio: original is 0, the only bucket that cream reads"),
        (NO_ORIGINAL, "attention-distill", "original is 0, the only bucket that attention-distill"),
        (
            {"long": 0, "short": 1, "original": 0},
            "cpt",
            "long is 0, the only bucket that cpt reads",
        ),
        (ONLY_SHORT, "merge", "long is 0, the only bucket that merge"),
        ({"long": 0, "short": 0, "original": 0}, "cpt", "data.ratio: all buckets are 0"),
        ({"long": 1, "short": 1}, "cpt", "name all three, with 0 for one that is not filled"),
        ({"long": 1, "short": -1, "original": 0}, "cpt", "ratio.short"),
        ({"long": 1, "short": 1, "original": 1}, "cpt", "no source has a share of the original"),
    ],
)
def test_what_cannot_do_without_a_bucket_is_refused(
    ratio: dict[str, int], method: str, words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        make(ratio, method)
    assert words in str(caught.value)


def test_weights_relative_to_long_text_need_long_text() -> None:
    source = {"name": "own", "kind": "library"}
    values = make(NO_ORIGINAL, "mix-cpt").model_dump()
    values = {key: values[key] for key in ("name", "original_window", "target_window")}
    values["data"] = {
        "num_tokens": 10**8,
        "ratio": {"long": 0, "short": 3, "original": 1},
        "sources": [source],
    }
    with pytest.raises(ValidationError, match=r"data\.ratio: long is 0, and training\.weighting"):
        RunConfig.model_validate({**values, "training": {"method": "longred-u"}})
    by_formula = {"method": "longred-u", "weighting": "formula"}
    config = RunConfig.model_validate({**values, "training": by_formula})
    assert config.training.recipe("longred-u").buckets() == ("short", "original")
    with pytest.raises(ValidationError, match=r"long is 0, and training\.weights auto"):
        RunConfig.model_validate({**values, "training": {**by_formula, "weights": "auto"}})
