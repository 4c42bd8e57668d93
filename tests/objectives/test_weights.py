import pytest

from longred.errors import ConfigError
from longred.method.methods import METHODS
from longred.objectives.table import loss_weights

SETTINGS = {
    "short_distill_weight": 5.0,
    "short_to_long_weight": 10.0,
    "attention_distill_weight": 2.0,
    "long_distill_weight": 0.5,
    "logit_distill_weight": 4.0,
}
RATIO = {"long": 4, "short": 3, "original": 1}


def weights(method: str, weighting: str) -> dict[str, float]:
    terms = METHODS[method].terms
    found = loss_weights(terms, weighting, ratio=RATIO, settings=SETTINGS)
    return {term.metric.removeprefix("train/"): weight for term, weight in found.items()}


def test_weights_reproduce_the_published_training() -> None:
    rest = {"long_loss": 1.0, "long_distill_loss": 0.5}
    assert weights("longred-c", "token_share") == {
        **rest,
        "short_distill_loss": 3.75,
        "attention_distill_loss": 1.5,
        "short_logit_loss": 3.0,
        "short_to_long_loss": 2.5,
        "original_logit_loss": 1.0,
    }
    assert weights("longred-c", "formula") == {
        **rest,
        "short_distill_loss": 5.0,
        "attention_distill_loss": 2.0,
        "short_logit_loss": 4.0,
        "short_to_long_loss": 10.0,
        "original_logit_loss": 4.0,
    }


def test_distillation_beside_original_text_weighs_as_beside_long_text() -> None:
    assert weights("recalibrate-distill", "token_share") == {
        "short_distill_loss": 3.75,
        "original_loss": 1.0,
        "short_to_long_loss": 2.5,
    }
    assert weights("recalibrate-distill", "formula") == {
        "short_distill_loss": 5.0,
        "original_loss": 1.0,
        "short_to_long_loss": 10.0,
    }


def test_text_weighs_one_together_and_a_lone_term_one() -> None:
    assert weights("cpt", "token_share") == {"long_loss": 1.0}
    assert weights("mix-cpt", "formula") == {
        "long_loss": 0.5,
        "short_loss": 0.375,
        "original_loss": 0.125,
    }
    assert weights("cream", "formula") == {"original_loss": 1.0}
    assert weights("attention-distill", "formula") == {"attention_distill_loss": 1.0}


def test_an_unknown_weighting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"training\.weighting: 'equal'"):
        weights("cpt", "equal")
