"""What each term of the loss is multiplied by."""

from collections.abc import Mapping, Sequence

from longred.errors import ConfigError
from longred.method.methods import Term

WEIGHTINGS = ("token_share", "formula")


def loss_weights(
    terms: Sequence[Term],
    weighting: str,
    *,
    ratio: Mapping[str, int],
    settings: Mapping[str, float],
) -> dict[Term, float]:
    """Return the weight of every term in the step's loss.

    Buckets under cross-entropy are one text: together they weigh 1, shared by tokens. The other
    terms weigh relative to that.

    Args:
        terms: of a method.
        weighting: `formula` takes the settings as they are; `token_share` multiplies each with its
            bucket's tokens per long token, as the published training did: at 4:3:1, 5 and 10 act
            as 3.75 and 2.5.
        ratio: tokens of the buckets in one step.
        settings: the weights that the terms name.

    Raises:
        ConfigError: the weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(
            f"training.weighting: {weighting!r} is not one of {', '.join(WEIGHTINGS)}"
        )
    text_tokens = sum(ratio[term.bucket] for term in terms if term.objective == "cross_entropy")
    weights = {}
    for term in terms:
        if term.objective == "cross_entropy":
            weights[term] = ratio[term.bucket] / text_tokens
        elif term.weight is None:
            weights[term] = 1.0
        else:
            share = ratio[term.bucket] / ratio["long"] if weighting == "token_share" else 1.0
            weights[term] = settings[term.weight] * share
    return weights
