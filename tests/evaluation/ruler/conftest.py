"""Three kinds of fast tokenizer, trained on Python's documentation."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longred.evaluation.ruler.materials import library_text

BOS, EOS = "<s>", "</s>"


def bpe() -> Any:
    """Byte-level BPE as in Llama-3 and Qwen, with BOS and EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(library_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def byte_level() -> Any:
    """One token per byte, without BOS and EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def unigram() -> Any:
    """Unigram in the style of sentencepiece: a marker stands for the space before a piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2000,
        special_tokens=["<unk>", BOS, EOS],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(library_text()[:20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token="<unk>"
    )


KINDS: dict[str, Callable[[], Any]] = {"bpe": bpe, "byte_level": byte_level, "unigram": unigram}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture(scope="session", params=list(KINDS))
def any_tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> Any:
    return tokenizers[request.param]
