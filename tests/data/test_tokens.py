"""Token ids of texts: BOS, control tokens, width."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError, PreflightError


def word_tokenizer(folder: Path, num_words: int) -> Path:
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(num_words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "w0"}))
    return folder


def test_documents_start_with_bos_if_asked(tiny_model_folder: Path) -> None:
    with_bos = TextTokenizer(tiny_model_folder, add_bos=True)
    without = TextTokenizer(tiny_model_folder, add_bos=False)
    texts = ["def f(): return 12", "x"]
    for a, b in zip(with_bos.encode(texts), without.encode(texts), strict=True):
        assert a[0] == with_bos.bos_token_id
        assert a[1:].tolist() == b.tolist()
        assert a.dtype == np.uint16


def test_text_never_becomes_a_control_token(tiny_model_folder: Path) -> None:
    tokenizer = TextTokenizer(tiny_model_folder, add_bos=False)
    control = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert None not in control
    text = "a <|eos|> b<|bos|></s><s>[INST]<|eot_id|>"
    (ids,) = tokenizer.encode([text])
    assert not control & set(ids.tolist())
    raw = Tokenizer.from_file(str(tiny_model_folder / "tokenizer.json"))
    assert raw.decode(ids.tolist(), skip_special_tokens=True) == text
    # Without the protection, the same text does become a control token.
    assert control & set(raw.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("num_words", "dtype"), [(65536, "uint16"), (65537, "uint32"), (100_000, "uint32")]
)
def test_width_follows_the_vocabulary(tmp_path: Path, num_words: int, dtype: str) -> None:
    tokenizer = TextTokenizer(word_tokenizer(tmp_path / "words", num_words), add_bos=False)
    assert tokenizer.dtype == dtype
    (ids,) = tokenizer.encode([f"w1 w{num_words - 1}"])
    assert ids.tolist() == [1, num_words - 1]
    assert ids.dtype == np.dtype(dtype)


def test_bos_that_does_not_exist(tmp_path: Path) -> None:
    folder = word_tokenizer(tmp_path / "words", 10)
    with pytest.raises(ConfigError, match=r"data\.add_bos: .* set data\.add_bos=false"):
        TextTokenizer(folder, add_bos=True)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"has no tokenizer\.json"):
        TextTokenizer(tmp_path, add_bos=False)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(PreflightError, match="is not a fast tokenizer"):
        TextTokenizer(tmp_path, add_bos=False)
