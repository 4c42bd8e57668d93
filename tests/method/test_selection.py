import pytest

from longred.config import SelectionConfig
from longred.errors import ConfigError
from longred.method.selection import (
    AUTO_SHARE,
    MEASURES,
    explain,
    explain_number,
    layers_for_share,
    select_layers,
)

SCORES = [0.9, 0.1, 0.5, 0.7, 0.2]


def test_score_of_decoder_layer_l_selects_hidden_state_l_plus_1_and_the_last_counts() -> None:
    assert select_layers(SCORES, strategy="attention_kl", num_distill_layers=3) == [1, 4, 5]
    assert select_layers(SCORES, strategy="attention_kl", num_distill_layers=1) == [5]
    assert select_layers(SCORES, strategy="attention_kl", num_distill_layers=5) == [1, 2, 3, 4, 5]


def test_a_high_last_score_does_not_win_a_second_place() -> None:
    scores = [0.1, 0.3, 0.2, 9.0]
    assert select_layers(scores, strategy="attention_kl", num_distill_layers=2) == [2, 4]


def test_published_choice_of_llama_3_8b() -> None:
    scores = [0.0] * 32
    for rank, hidden_state in enumerate([9, 15, 12, 14, 1]):
        scores[hidden_state - 1] = 1.0 - rank / 10
    chosen = select_layers(scores, strategy="attention_kl", num_distill_layers=6)
    assert set(chosen) == {9, 15, 12, 14, 1, 32}


def test_equal_scores_keep_their_order() -> None:
    assert select_layers([0.5] * 4, strategy="attention_kl", num_distill_layers=3) == [1, 2, 4]


def test_uniform_is_evenly_spaced_and_ends_with_the_last() -> None:
    assert select_layers([0.0] * 32, strategy="uniform", num_distill_layers=4) == [8, 16, 24, 32]
    for count in range(1, 33):
        chosen = select_layers([0.0] * 32, strategy="uniform", num_distill_layers=count)
        assert len(set(chosen)) == count
        assert chosen[-1] == 32
        assert chosen[0] >= 1


def test_manual_choice() -> None:
    options = {"strategy": "manual", "num_distill_layers": 6}
    assert select_layers(SCORES, **options, layers=[5, 2]) == [2, 5]
    for layers in ([1, 2], [0, 5], [5, 6], [5, 5]):
        with pytest.raises(ConfigError, match=r"selection\.layers"):
            select_layers(SCORES, **options, layers=layers)


@pytest.mark.parametrize(
    ("scores", "options", "key"),
    [
        (SCORES, {"strategy": "attention_kl", "num_distill_layers": 6}, "num_distill_layers: 6"),
        (SCORES, {"strategy": "uniform", "num_distill_layers": 0}, "num_distill_layers: 0"),
        (SCORES, {"strategy": "best", "num_distill_layers": 2}, "strategy: 'best'"),
        (SCORES, {"strategy": "manual", "num_distill_layers": 2}, "layers"),
        (SCORES, {"strategy": "uniform", "num_distill_layers": 2, "layers": [5]}, "layers"),
        ([0.1, float("nan")], {"strategy": "attention_kl", "num_distill_layers": 1}, "finite"),
        ([], {"strategy": "attention_kl", "num_distill_layers": 1}, "finite"),
    ],
)
def test_impossible_choices_are_named(
    scores: list[float], options: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError, match=f"^selection.*{key}"):
        select_layers(scores, **options)  # type: ignore[arg-type]


def test_explanations_name_both_numbers_and_the_rank() -> None:
    first, last = explain(SCORES, [4, 5], strategy="attention_kl")
    assert "hidden state 4" in first
    assert "decoder layer 3" in first
    assert "29 % of the total attention KL" in first
    assert "0.7 nats" in first
    assert "rank 2 of 5" in first
    assert "always distilled" in last


def test_hidden_distance_is_explained_without_nats() -> None:
    text = explain([0.01, 0.03], [2], strategy="hidden")[0]
    assert "75 % of the total hidden-state distance (1 - cosine) (0.03, rank 1 of 2)" in text
    assert select_layers([0.2, 0.1, 0.3, 0.1], strategy="hidden", num_distill_layers=2) == [3, 4]


@pytest.mark.parametrize(
    ("scores", "share", "expected"),
    [
        (SCORES, 0.05, [5]),
        (SCORES, 0.45, [1, 5]),
        (SCORES, 0.5, [1, 4, 5]),
        (SCORES, 0.9, [1, 3, 4, 5]),
        (SCORES, 1.0, [1, 2, 3, 4, 5]),
        ([0.0, 0.0, 0.0], 0.5, [3]),
        ([0.25, 0.25, 0.25, 0.25], 0.5, [1, 4]),
        ([0.1, 0.1, 0.9], 0.5, [3]),
        ([2.0], 1.0, [1]),
    ],
)
def test_auto_takes_the_fewest_layers_that_hold_the_share(
    scores: list[float], share: float, expected: list[int]
) -> None:
    chosen = select_layers(scores, strategy="auto", num_distill_layers=99, share=share)
    assert chosen == expected
    held = sum(scores[layer - 1] for layer in chosen)
    assert held >= share * sum(scores) - 1e-12
    assert layers_for_share(scores, share) == len(chosen)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_an_impossible_share_is_named(share: float) -> None:
    with pytest.raises(ConfigError, match=r"^selection\.share"):
        select_layers(SCORES, strategy="auto", num_distill_layers=1, share=share)


def test_the_number_of_layers_is_explained() -> None:
    text = explain_number(SCORES, [1, 4, 5], strategy="auto", share=0.5)
    assert text == (
        "the fewest layers, the last one counted, that hold 50 % of the total attention KL are "
        "distilled: 3 of 5 layers hold 75 % of the total attention KL"
    )
    assert "as many as the recipe says" in explain_number(SCORES, [5], strategy="uniform")


def test_the_config_offers_every_strategy_and_the_same_share() -> None:
    offered = SelectionConfig.model_fields["strategy"].annotation
    assert set(offered.__args__) == set(MEASURES)  # type: ignore[union-attr]
    assert SelectionConfig().share == AUTO_SHARE
