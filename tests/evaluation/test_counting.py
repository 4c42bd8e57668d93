"""Counting by pieces against encoding whole texts, for each supported pre-tokenizer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from longred.evaluation.counting import (
    Listing,
    _Pieces,
    count_tokens,
    prefix_ids,
    splits_at_fronts,
    token_counter,
)
from longred.evaluation.ruler.materials import library_text

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AWKWARD = st.text(
    st.sampled_from("abZ019 \n\t\r.-,'\"\u00a0\u0301\x1c\u2028é你ﬁ_:!<s>")
    | st.characters(codec="utf-8"),
    max_size=40,
)
LINES = st.lists(
    st.sampled_from(
        [
            "VAR AB12 = 9 ",
            "x is: 3f2a-9b0c.",
            "",
            " a",
            "...",
            "it's 'd9",
            "<s>",
            "<s>1",
            "é1.",
            "\t",
        ]
    ),
    max_size=8,
).map("\n".join)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": split(WORDS % r"\p{N}{1,3}"),
    "qwen2": split(WORDS % r"\p{N}"),
    "digits": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
}


def trained(pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(library_text()[:8], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def backends() -> dict[str, Tokenizer]:
    found = {name: trained(pre_tokenizer) for name, pre_tokenizer in PRE_TOKENIZERS.items()}
    found["qwen2"].normalizer = normalizers.NFC()
    found["gpt2"].post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return found


@pytest.mark.medium
@settings(deadline=None, max_examples=100)
@given(texts=st.lists(AWKWARD | LINES, max_size=5))
def test_pieces_count_as_a_whole(backends: dict[str, Tokenizer], texts: list[str]) -> None:
    for backend in backends.values():
        assert splits_at_fronts(backend)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
        count, wanted = token_counter(tokenizer), [count_tokens(tokenizer, t) for t in texts]
        assert count(texts) == wanted
        assert count(texts[::-1]) == wanted[::-1]
        pieces, num_before = _Pieces(backend), len(prefix_ids(tokenizer))
        assert num_before == int(backend is backends["gpt2"])
        assert [size + num_before for size in pieces(texts)] == wanted


@pytest.mark.medium
@settings(deadline=None, max_examples=50)
@given(
    around=st.tuples(AWKWARD | LINES, AWKWARD | LINES),
    words=st.lists(st.text("abZ019.-'é_!\u0301", min_size=1, max_size=5), min_size=2, max_size=6),
)
def test_lists_count_as_their_text(
    backends: dict[str, Tokenizer], around: tuple[str, str], words: list[str]
) -> None:
    before, after = around
    listing = Listing(f"{before}: ", words, f"\n{after}")
    for backend in backends.values():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        num_before = len(prefix_ids(tokenizer))
        (size,) = _Pieces(backend)([listing])
        assert size + num_before == count_tokens(tokenizer, str(listing))
        assert token_counter(tokenizer)([listing]) == [count_tokens(tokenizer, str(listing))]


def test_a_wrong_count_of_pieces_is_not_believed(
    backends: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backends["gpt2"], bos_token="<s>")
    count, texts = token_counter(tokenizer), ["one two", "three", "four five six"]
    wanted = [count_tokens(tokenizer, text) for text in texts]
    for _ in range(2):
        assert count(texts) == wanted
    monkeypatch.setattr(_Pieces, "__call__", lambda self, texts: [99 for _ in texts])
    assert count(texts) != wanted  # the third call is not checked, the fourth is
    for _ in range(4):
        assert count(texts) == wanted


def test_tokenizers_that_may_join_pieces_are_counted_as_a_whole() -> None:
    for token in (
        AddedToken("<m>", lstrip=True),
        AddedToken("<m>", rstrip=True),
        AddedToken("<m>", single_word=True),
        AddedToken("two words"),
        AddedToken(" a"),
        AddedToken("a-b"),
        AddedToken("<m1>"),
        AddedToken("<m>\n</m>"),
    ):
        backend = trained(PRE_TOKENIZERS["gpt2"])
        backend.add_tokens([token])
        assert not splits_at_fronts(backend)
    for pre_tokenizer in (
        None,
        pre_tokenizers.Metaspace(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        split(r"\d+"),
    ):
        backend = trained(PRE_TOKENIZERS["gpt2"])
        backend.pre_tokenizer = pre_tokenizer
        assert not splits_at_fronts(backend)
    backend = trained(PRE_TOKENIZERS["gpt2"])
    backend.normalizer = normalizers.Replace(" ", "_")
    assert not splits_at_fronts(backend)
