import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from longred.demo import measure, model_path
from longred.demo.corpus import held_out_documents
from longred.demo.tokenizer import load_tokenizer
from longred.evaluation.short.key_recall import key_recall_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


@pytest.fixture(scope="module")
def held_out_texts():
    return [text for _, text in held_out_documents()]


def test_shipped_folder_is_small_and_complete(model, tokenizer):
    names = {path.name for path in model_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert (model_path() / "model.safetensors").stat().st_size <= 8_000_000
    assert model.config.max_position_embeddings == 256
    assert model.config.vocab_size == len(tokenizer) == 1024
    assert model.config.bos_token_id == tokenizer.bos_token_id


@pytest.mark.medium
def test_model_finds_needles_with_unseen_keys_values_and_text(model, tokenizer, held_out_texts):
    prompts = measure.needle_prompts(tokenizer, count=40, window=256, passages=held_out_texts)
    assert measure.exact_match(model, tokenizer, prompts) >= 0.85


def test_model_tells_keys_apart(model, tokenizer):
    rng = random.Random(11)
    prompts = [key_recall_prompt(rng, num_pairs=4) for _ in range(40)]
    assert measure.exact_match(model, tokenizer, prompts) >= 0.75


@pytest.mark.medium
def test_model_has_learned_the_library(model, tokenizer, held_out_texts):
    bits, nats = measure.bits_per_byte(model, tokenizer, held_out_texts[:4], window=256)
    assert bits < 2.0
    # A uniform guess costs 8 bits per byte and ln(1024) nats per token.
    assert nats < 4.0


def test_padding_does_not_change_an_answer(model, tokenizer, held_out_texts):
    short, long = (
        measure.needle_prompts(tokenizer, count=1, window=window, passages=held_out_texts)
        for window in (128, 256)
    )
    alone = [measure.exact_match(model, tokenizer, prompts) for prompts in (short, long)]
    assert measure.exact_match(model, tokenizer, short + long) == sum(alone) / 2


@pytest.mark.parametrize(
    ("text", "digits"), [(" 123.", "123"), (" 12\n3", "12"), ("12345", "12345"), (" x1", "")]
)
def test_answers_are_the_leading_digits(text, digits):
    assert measure._leading_digits(text) == digits
