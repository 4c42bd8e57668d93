"""longrope's factors for a model, found by the perplexity of needles at the target window."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from longred.method.factor_search import (
    Candidate,
    Scored,
    by_ntk_rule,
    critical_pair,
    evolve,
    num_scored,
)
from longred.models.architectures import main_rope, rotary_dim
from longred.models.extension import extend_config
from longred.models.folder import read_object
from longred.profiling.needles import NeedleRows, needle_perplexity, perplexity_by_guessing
from longred.profiling.sweep import with_rope
from longred.progress import Progress
from longred.store.artifacts import write_json

log = logging.getLogger(__name__)

SCORES_NAME = "scores.json"


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        long_factor: of each pair of dimensions.
        critical_pair: the first pair with a factor of its own.
        critical_pair_in_theory: the first pair that does not turn within the original window.
        perplexity: of the needles' answers.
        perplexity_by_ntk_rule: the same with longrope's default factors.
        perplexity_by_guessing: of a model that reads none of the needles.
        best_by_round: the lowest perplexity after every round.
        num_scored: candidates scored.
    """

    long_factor: list[float]
    critical_pair: int
    critical_pair_in_theory: int
    perplexity: float
    perplexity_by_ntk_rule: float
    perplexity_by_guessing: float
    best_by_round: list[float]
    num_scored: int


def search_factors(
    model: PreTrainedModel,
    rows: NeedleRows,
    *,
    windows: dict[str, int],
    settings: dict[str, Any],
    num_rounds: int,
    population: int,
    seed: int,
    work: Path,
    on_progress: Progress | None = None,
) -> Found:
    """Search for the factors with which the untrained model finds needles best.

    Scores are kept in the work folder, so that a search that was stopped goes on.

    Args:
        model: the original model, with attention `longred`.
        rows: of target_window tokens.
        windows: `original_window` and `target_window`.
        settings: further settings of longrope.
        num_rounds: of the search.
        population: candidates in a round.
        seed: of the search.
        work: an existing folder.
        on_progress: called after every candidate.

    Raises:
        ConfigError: as `extend_config`.
        NonFiniteLossError: the model's perplexity is NaN.
    """
    config, rope = model.config, main_rope(model.config)
    original = int(rope.get("original_max_position_embeddings", windows["original_window"]))
    s, dim = windows["target_window"] / original, rotary_dim(config)
    scores: dict[str, float] = {}
    if (work / SCORES_NAME).is_file():
        scores = read_object(work / SCORES_NAME)
    total, num_done = num_scored(num_rounds, population), 0

    def score(candidate: Candidate) -> float:
        nonlocal num_done
        factors = candidate.factors(s)
        key = ",".join(map(repr, factors))
        if key not in scores:
            given = {**windows, **settings, "long_factor": factors}
            student = with_rope(model, extend_config(config, method="longrope", **given))
            scores[key] = needle_perplexity(student, rows)
            write_json(work / SCORES_NAME, scores)
        num_done += 1
        log.info("extension: critical pair %d: perplexity %.5g", candidate.critical, scores[key])
        if on_progress is not None:
            on_progress(num_done, total, "candidates")
        return scores[key]

    in_theory = critical_pair(float(rope["rope_theta"]), dim, original)
    rounds = evolve(
        score,
        s=s,
        critical=in_theory,
        num_pairs=dim // 2,
        num_rounds=num_rounds,
        population=population,
        seed=seed,
    )
    best = rounds[-1][0]
    return Found(
        long_factor=best.candidate.factors(s),
        critical_pair=best.candidate.critical,
        critical_pair_in_theory=in_theory,
        perplexity=best.score,
        perplexity_by_ntk_rule=_score_of(rounds[0], by_ntk_rule(dim // 2, s)),
        perplexity_by_guessing=perplexity_by_guessing(rows),
        best_by_round=[ranked[0].score for ranked in rounds],
        num_scored=total,
    )


def _score_of(ranked: list[Scored], candidate: Candidate) -> float:
    return next(one.score for one in ranked if one.candidate == candidate)
