"""Counting word by word against encoding whole texts, under the pre-tokenizers in use."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longred.evaluation.prompts import count_tokens, splits_before_words, token_counter
from longred.evaluation.ruler.texts import library_text

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AWKWARD = st.text(
    st.sampled_from("abZ019 \n\t\r.-,'\"\u00a0\u0301\x1c\u2028é你ﬁ_:!")
    | st.characters(codec="utf-8"),
    max_size=40,
)


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
    return found


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(AWKWARD, max_size=5))
def test_word_by_word_counts_as_a_whole(backends: dict[str, Tokenizer], texts: list[str]) -> None:
    for backend in backends.values():
        assert splits_before_words(backend)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
        count, wanted = token_counter(tokenizer), [count_tokens(tokenizer, t) for t in texts]
        assert count(texts) == wanted
        assert count(texts[::-1]) == wanted[::-1]


def test_tokenizers_that_may_join_words_are_counted_as_a_whole() -> None:
    for token in (
        AddedToken("<m>", lstrip=True),
        AddedToken("<m>", rstrip=True),
        AddedToken("<m>", single_word=True),
        AddedToken("two words"),
        AddedToken(" a"),
        AddedToken("a-b"),
    ):
        backend = trained(PRE_TOKENIZERS["gpt2"])
        backend.add_tokens([token])
        assert not splits_before_words(backend)
    for pre_tokenizer in (
        None,
        pre_tokenizers.Metaspace(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        split(r"\d+"),
    ):
        backend = trained(PRE_TOKENIZERS["gpt2"])
        backend.pre_tokenizer = pre_tokenizer
        assert not splits_before_words(backend)
    backend = trained(PRE_TOKENIZERS["gpt2"])
    backend.normalizer = normalizers.Replace(" ", "_")
    assert not splits_before_words(backend)
