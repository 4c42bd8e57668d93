import json
from pathlib import Path

import pytest

from longred.cli.drift_text import MAX_ROWS_OF_A_DOCUMENT, read_text_rows
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> TextTokenizer:
    return TextTokenizer(tiny_model_folder, add_bos=False)


def test_rows_are_cuts_of_one_document_each(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    texts = ["alpha beta gamma " * 200, "short", "x = json.loads(y)\n" * 12]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    rows_NT = read_text_rows(str(tmp_path), tokenizer, length=32, num_tokens=10**4)
    bos = tokenizer.bos_token_id
    cuts = [
        [bos, *ids[i : i + 31].tolist()]
        for ids in tokenizer.encode(texts)
        for i in range(0, min(len(ids), MAX_ROWS_OF_A_DOCUMENT * 31) - 30, 31)
    ]
    assert sorted(rows_NT.tolist()) == sorted(cuts)
    first = read_text_rows(str(tmp_path), tokenizer, length=32, num_tokens=70)
    assert first.tolist() == rows_NT[:2].tolist()


def test_the_library_is_there_by_default(tokenizer: TextTokenizer) -> None:
    rows_NT = read_text_rows("library", tokenizer, length=64, num_tokens=300)
    assert rows_NT.shape == (4, 64)


def test_too_short_texts_are_named(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps({"text": "short"}) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no document in .* has 64 tokens"):
        read_text_rows(str(file), tokenizer, length=64, num_tokens=100)
