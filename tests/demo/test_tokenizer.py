import pytest

from longred.demo import model_path
from longred.demo.tokenizer import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(model_path())


def test_digits_are_single_tokens(tokenizer):
    ids = tokenizer("x 1234567 y", add_special_tokens=False).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("1234567")


def test_bos_opens_every_text(tokenizer):
    ids = tokenizer("import os").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("control", [BOS_TOKEN, EOS_TOKEN, PAD_TOKEN])
def test_control_tokens_never_come_from_text(tokenizer, control):
    ids = tokenizer(f"a {control} b{control}", add_special_tokens=False).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == f"a {control} b{control}"


def test_any_text_survives_the_round_trip(tokenizer):
    text = "def f(x):\n\treturn '\u00e9\u4e2d\U0001f600'  # 42\r\n\x00"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_training_is_deterministic():
    texts = ["def f(x):\n    return x + 1\n" * 20, "the tea is hot and the cup is full\n" * 20]
    first, second = (train_tokenizer(texts, 256).get_vocab() for _ in range(2))
    assert first == second
