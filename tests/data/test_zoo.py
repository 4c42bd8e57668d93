"""A corpus with every kind of damage: rows are counted by reason and quarantined."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from longred.config import DataConfig
from longred.data.buckets import prepare
from longred.data.documents import REASONS
from longred.errors import ConfigError
from tests.data.test_buckets import pieces_of
from tests.data.test_files import ZOO

EXPECTED = {
    "bad_json": 2,
    "bad_parquet": 1,
    "bad_utf8": 2,
    "empty": 2,
    "lone_surrogate": 1,
    "missing_field": 3,
    "not_object": 4,
    "oversized": 3,
    "truncated_stream": 3,
    "unreadable": 1,
    "wrong_type": 1,
}
MAX_CHARACTERS = 100_000


@pytest.fixture
def zoo(write_corpus: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with good text and every kind of bad row or file, as counted in EXPECTED."""
    folder = tmp_path / "zoo"
    (folder / "deep").mkdir(parents=True)
    write_corpus(folder / "good.jsonl", num_documents=400)
    rows = [*ZOO, b"null", b"3", b'[{"text": "x"}]']
    rows.append(b'{"text": "' + b"long " * 50_000 + b'"}')
    rows.append(b'{"text": "' + b"very long " * 5_000_000)  # 50 million characters, unterminated
    (folder / "rows.jsonl").write_bytes(b"\n".join(rows))
    good = "".join(json.dumps({"text": f"packed {n} " + "word " * 40}) + "\n" for n in range(500))
    half = gzip.compress(good.encode())
    (folder / "half.jsonl.gz").write_bytes(half[: len(half) // 2])
    other = good.replace("packed", "zipped")
    (folder / "whole.jsonl.zst").write_bytes(zstandard.compress(other.encode()))
    (folder / "nothing.jsonl.zst").write_bytes(b"")
    (folder / "nothing.jsonl.gz").write_bytes(b"")
    table = pyarrow.table({"text": ["a row", None, "", "</s> <|eos|> control " * 30]})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    whole = (folder / "rows.parquet").read_bytes()
    (folder / "deep" / "cut.parquet").write_bytes(whole[:-20])
    (folder / "deep" / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "deep" / "long.md").write_text("x" * (MAX_CHARACTERS + 1))
    (folder / "deep" / "gone.py").symlink_to(folder / "nowhere.py")
    (folder / "deep" / "fine.py").write_text("fine = True\n" * 40)
    return folder


def test_every_bad_thing_is_counted_and_kept(
    zoo: Path, make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = {"name": "zoo", "kind": "files", "path": str(zoo)}
    config = make_config(
        sources=[source],
        max_document_characters=MAX_CHARACTERS,
        max_rejected_fraction=0.5,
        split_bytes=None,
        executor={"num_workers": 1},
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(config, tiny_model_folder, folder, tmp_path / "work")
    index = json.loads((folder / "index.json").read_text())
    assert index["sources"]["zoo"]["rejected"] == EXPECTED
    assert set(EXPECTED) == set(REASONS)
    rows = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert Counter(row["reason"] for row in rows) == EXPECTED
    for row in rows:
        assert set(row) == {"source", "path", "offset", "line", "reason", "sha256", "raw"}
        assert (zoo / row["path"]).is_symlink() or (zoo / row["path"]).exists()
        assert len(row["raw"]) <= 4 * 256  # a byte may be escaped as four characters
    # Text that looks like a control token is tokenised as text.
    control = {index["tokenizer"]["bos_token_id"], index["tokenizer"]["eos_token_id"]}
    for _, _, tokens in pieces_of(folder):
        assert not control & set(tokens[1:])


def test_the_zoo_is_refused_at_the_usual_limit(
    zoo: Path, make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    config = make_config(
        sources=[{"name": "zoo", "kind": "files", "path": str(zoo)}],
        max_document_characters=MAX_CHARACTERS,
        split_bytes=None,
    )
    with pytest.raises(ConfigError, match=r"max_rejected_fraction: 21 of \d+ rows of .* 2 bad"):
        prepare(config, tiny_model_folder, tmp_path, tmp_path / "work")


def test_duplicates_are_left_out_wherever_they_are(
    corpus: Path, make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Duplicates in the same file, in another shard and in another source."""
    lines = corpus.read_bytes().splitlines(keepends=True)
    corpus.write_bytes(b"".join([*lines[:60], *lines[:20], *lines[60:]]))
    second = tmp_path / "second.jsonl"
    texts = [json.loads(line)["text"] for line in lines[5:15]]
    second.write_text(
        "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts)
        + "".join(json.dumps({"text": f"own {n} " + "word " * 60}) + "\n" for n in range(300))
    )
    pair = [
        {"name": "first", "kind": "files", "path": str(corpus), "weight": 8},
        {"name": "second", "kind": "files", "path": str(second), "buckets": {"short": 1}},
    ]
    found: dict[str, Any] = {}
    for key, drop in (("with", True), ("without", False)):
        folder = tmp_path / key
        folder.mkdir()
        config = make_config(
            sources=pair, shard_bytes=60_000, num_tokens=49152, drop_duplicates=drop
        )
        prepare(config, tiny_model_folder, folder, tmp_path / f"work-{key}")
        sources = json.loads((folder / "index.json").read_text())["sources"]
        found[key] = {name: source["duplicates"] for name, source in sources.items()}
    assert found == {"with": {"first": 20, "second": 10}, "without": {"first": 0, "second": 0}}


def test_documents_that_hold_a_question_are_left_out_and_listed(
    corpus: Path, make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    question = " ".join(f"asked{n}" for n in range(20))
    samples = tmp_path / "samples.jsonl"
    asked = {"input": "?", "choices": ["yes", question.title() + "!"]}
    samples.write_text(json.dumps(asked) + "\n")
    lines = corpus.read_bytes().splitlines(keepends=True)
    filler = "word " * 100
    leaked = f"{filler} {question.upper()}, {filler}"
    almost = f"{filler} {' '.join(question.split()[:12])} {filler}"
    rows = [json.dumps({"text": text}).encode() + b"\n" for text in (leaked, almost)]
    corpus.write_bytes(b"".join([lines[0], *rows, *lines[1:]]))
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(make_config(decontaminate=[str(samples)]), tiny_model_folder, folder, tmp_path / "work")
    (row,) = [json.loads(line) for line in (folder / "contaminated.jsonl").read_text().splitlines()]
    assert (row["path"], row["offset"]) == (corpus.name, len(lines[0]))
    assert row["words"] == " ".join(question.split()[:13])
    assert json.loads((folder / "index.json").read_text())["sources"]["words"]["contaminated"] == 1
