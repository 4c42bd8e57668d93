import pytest

from longred.errors import ConfigError
from longred.selection import explain, select_layers

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
    first, last = explain(SCORES, [4, 5])
    assert "hidden state 4" in first
    assert "decoder layer 3" in first
    assert "0.7" in first
    assert "rank 2 of 5" in first
    assert "always distilled" in last
