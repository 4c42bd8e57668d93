"""Long text files are cut into documents: no text lost, the same cuts whatever the shards."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from longred.config import DataConfig, load_recipe
from longred.config.model import WindowConfig
from longred.data.buckets import prepare
from longred.data.cutting import num_pieces
from longred.data.documents import Document, Intake, document_id
from longred.data.inspection import files_texts
from longred.data.sources import fingerprints, kind_of, shards_of

SIZE = 2048


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 100 paragraphs, with letters of one to four bytes."""
    rng = random.Random(0)
    words = ("window", "größe", "窗口", "🙂", "token")
    paragraphs = [" ".join(rng.choices(words, k=rng.randrange(5, 90))) for _ in range(100)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return path


def read(config: DataConfig, intake: Intake | None = None) -> list[Document]:
    source = config.sources[0]
    intake = intake or Intake(source.name, config.max_document_characters)
    return [
        document
        for shard in shards_of(config, 0)
        for document in kind_of(source).read(config, source, shard.parts, intake)
    ]


def config_of(path: Path, make_config: Callable[..., DataConfig], **changes: Any) -> DataConfig:
    source = {"name": "own", "kind": "files", "path": str(path)}
    return make_config(sources=[source], **{"split_bytes": SIZE, **changes})


def test_pieces_are_the_text_and_end_at_blank_lines(
    text: Path, make_config: Callable[..., DataConfig]
) -> None:
    documents = read(config_of(text, make_config))
    raw = text.read_bytes()
    assert "".join(document.text for document in documents).encode() == raw
    assert len(documents) == len(raw) // SIZE > 10
    assert all(document.text.endswith("\n\n") for document in documents[:-1])
    sizes = [len(document.text.encode()) for document in documents]
    assert all(SIZE / 2 <= size < 2 * SIZE for size in sizes)
    for document, size in zip(documents, sizes, strict=True):
        assert document.text.encode() == raw[document.offset : document.offset + size]
        assert document.id == document_id("own", "book.txt", document.offset)


@pytest.mark.parametrize("shard_bytes", [1, SIZE, 3 * SIZE + 1, 10**9])
def test_cuts_do_not_depend_on_shards(
    text: Path, make_config: Callable[..., DataConfig], shard_bytes: int
) -> None:
    expected = read(config_of(text, make_config))
    config = config_of(text, make_config, shard_bytes=shard_bytes)
    intake = Intake("own", 10**7)
    assert read(config, intake) == expected
    # Lines are numbered over the whole file, as those of JSON lines.
    assert intake.num_lines["book.txt"] == text.read_bytes().count(b"\n")


@pytest.mark.parametrize("filler", ["x", "窗", "x\n", "\n", "a b ", "\r\n\r\n"])
def test_text_without_blank_lines_is_cut_between_characters(
    tmp_path: Path, make_config: Callable[..., DataConfig], filler: str
) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes((filler * 9000).encode())
    config = config_of(path, make_config)
    intake = Intake("own", 10**7)
    found = "".join(document.text for document in read(config, intake))
    assert not intake.rejected["bad_utf8"]
    if filler.strip():
        assert found == filler * 9000
    else:
        assert intake.rejected["empty"] == len(path.read_bytes()) // SIZE


def test_markdown_is_cut_before_headings_and_code_before_statements(
    tmp_path: Path, make_config: Callable[..., DataConfig]
) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text("".join(f"# Part {n}\n\n{'word ' * 60}\n\n" for n in range(30)))
    texts = [document.text for document in read(config_of(guide, make_config))]
    assert len(texts) > 3
    assert all(text.startswith("# Part") for text in texts)
    code = tmp_path / "code.py"
    body = "\n\n".join(f"    step = {n}" for n in range(20))
    code.write_text("\n".join(f"def part_{n}():\n{body}\n\n" for n in range(30)))
    texts = [document.text for document in read(config_of(code, make_config))]
    assert len(texts) > 3
    assert all(text.startswith("def part_") for text in texts)


def test_the_size_follows_the_window_and_never_passes_the_limit(
    make_config: Callable[..., DataConfig],
) -> None:
    assert make_config().piece_bytes() == 65536
    assert make_config(target_window=131072).piece_bytes() == 2**20
    assert make_config(max_document_characters=100_000).piece_bytes() == 50_000
    assert make_config(split_bytes=None).piece_bytes() is None
    assert num_pieces("a.txt", 131_071, 65536) == 1
    assert num_pieces("a.TXT", 131_072, 65536) == 2
    assert num_pieces("a.jsonl", 10**9, 65536) == num_pieces("a.txt", 10**9, None) == 1


def test_what_is_not_cut_keeps_its_digest(
    text: Path, corpus: Path, make_config: Callable[..., DataConfig]
) -> None:
    assert make_config().digest_values() == make_config(split_bytes=None).digest_values()
    whole = fingerprints(config_of(text, make_config, split_bytes=None))
    assert fingerprints(config_of(text, make_config, split_bytes=2**16)) == whole
    cut = [fingerprints(config_of(text, make_config, split_bytes=size)) for size in (2048, 4096)]
    assert whole not in cut
    assert cut[0] != cut[1]
    assert fingerprints(make_config(split_bytes=1024)) == fingerprints(make_config())


def test_intermediate_windows_cut_as_the_last_one() -> None:
    recipe = load_recipe("demo")
    window = WindowConfig(target_window=512)
    extension = recipe.extension.model_copy(update={"windows": [window]})
    (first,) = recipe.model_copy(update={"extension": extension}).windows()
    assert first.data.piece_bytes() == recipe.data.piece_bytes()
    assert first.data.digest_values() == {**recipe.data.digest_values(), "target_window": 512}


def test_a_broken_piece_is_rejected_alone_with_its_line(
    text: Path, make_config: Callable[..., DataConfig]
) -> None:
    raw = text.read_bytes()
    place = raw.index(b"\n\n", 5 * SIZE) + 1
    text.write_bytes(raw[:place] + b"\xff" + raw[place:])
    intake = Intake("own", 10**7)
    documents = read(config_of(text, make_config), intake)
    assert intake.rejected == {"bad_utf8": 1}
    (row,) = intake.quarantine
    assert row["line"] == raw[: row["offset"]].count(b"\n") + 1
    starts = [document.offset for document in documents]
    assert row["offset"] not in starts
    assert all(a < b for a, b in pairwise(starts))


def test_a_few_files_fill_all_buckets_and_the_cut_is_recorded(
    tmp_path: Path, make_config: Callable[..., DataConfig], tiny_model_folder: Path
) -> None:
    rng = random.Random(1)
    books = tmp_path / "books"
    books.mkdir()
    for number in range(3):
        paragraphs = [f"{rng.random()} " + "long words " * 40 for _ in range(120)]
        (books / f"{number}.txt").write_text("\n\n".join(paragraphs))
    (books / "page.html").write_text("<p>")
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(config_of(books, make_config), tiny_model_folder, folder, tmp_path / "work")
    index = json.loads((folder / "index.json").read_text())
    assert [index["train"][bucket]["num_blocks"] for bucket in ("long", "short")] == [64, 384]
    entry = index["sources"]["own"]
    assert entry["cut_files"] == 3
    assert entry["cut_documents"] == entry["rows"] > 60
    assert files_texts("own", entry) == [
        f"own: 3 files cut into {entry['rows']} documents",
        "own: not read: 1 file: 1 .html (page.html)",
    ]
