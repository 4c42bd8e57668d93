"""Reading text, JSON lines and parquet files, including every kind of damage."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest
import zstandard

from longred.config import DataConfig
from longred.data import files
from longred.data.documents import Document, Intake, document_id
from longred.data.finding import describe_ignored, find_files
from longred.errors import ConfigError

ZOO = {
    b'{"text": "good one"}': None,
    b'{"text": "broken': "bad_json",
    b'{"text": "\xff\xfe"}': "bad_utf8",
    b'["text"]': "not_object",
    b'{"body": "x"}': "missing_field",
    b'{"text": null}': "missing_field",
    b'{"text": 7}': "wrong_type",
    b'{"text": "  \\n"}': "empty",
    b'{"text": "half \\ud800 pair"}': "lone_surrogate",
    b'{"text": "whole \\ud83d\\ude00 pair"}': None,
    b"[" * 100_000: "bad_json",
}


def count(max_characters: int = 10**6) -> Intake:
    return Intake("name", max_characters)


def read(
    path: Path | str, intake: Intake, text_field: str = "text", shard_bytes: int = 2**26
) -> list[Document]:
    """Read all documents; each part of a file is read separately."""
    source = {"name": "name", "kind": "files", "path": str(path), "text_field": text_field}
    config = DataConfig(sources=[source], num_tokens=1, shard_bytes=shard_bytes)
    parts = files.parts(config, config.sources[0], "data.sources.0")
    found = [list(files.read(config, config.sources[0], (part,), intake)) for part in parts]
    return [document for documents in found for document in documents]


def test_every_bad_row_is_counted_by_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(ZOO) + b"\n\n")
    intake = count()
    documents = read(path, intake)
    assert [document.text for document in documents] == ["good one", "whole \U0001f600 pair"]
    reasons = [reason for reason in ZOO.values() if reason]
    assert dict(intake.rejected) == {reason: reasons.count(reason) for reason in reasons}
    assert intake.seen == len(ZOO)
    # Evidence: position and first bytes of the row.
    assert [row["reason"] for row in intake.quarantine] == reasons
    for row in intake.quarantine:
        raw = path.read_bytes()[row["offset"] :].split(b"\n")[0]
        assert (raw + b"\n").decode("utf-8", "backslashreplace").startswith(row["raw"])
        assert path.read_bytes().split(b"\n")[row["line"] - 1] == raw


def test_empty_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": ""}\n' * 9 + '{"text": "fine"}\n')
    intake = count()
    assert len(read(path, intake)) == 1
    assert intake.rejected == {"empty": 9}


def test_ids_are_the_same_on_every_machine(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
        (tmp_path / name / "note.md").write_text("c")
    here = read(tmp_path / "here", count())
    there = read(tmp_path / "there", count())
    assert here == there
    assert {document.id for document in here} == {
        document_id("name", "sub/rows.jsonl", 0),
        document_id("name", "sub/rows.jsonl", 14),
        document_id("name", "note.md"),
    }


def test_gzip_rows_and_a_stream_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    rows = "".join(json.dumps({"text": f"row {i} {i * 7919 % 1000}"}) + "\n" for i in range(20000))
    path.write_bytes(gzip.compress(rows.encode()))
    assert len(read(path, count())) == 20000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    intake = count()
    documents = read(path, intake)
    assert 5000 < len(documents) < 20000
    assert intake.rejected == {"truncated_stream": 1}


def test_parquet_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"content": ["a", None, "", "b"], "n": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    intake = count()
    documents = read(path, intake, "content")
    assert [document.text for document in documents] == ["a", "b"]
    assert documents[1].id == document_id("name", "rows.parquet", 3)
    assert intake.rejected == {"missing_field": 1, "empty": 1}
    with pytest.raises(ConfigError, match=r"no column text .* it has content, n"):
        read(path, count())
    path.write_bytes(path.read_bytes()[:-10])
    intake = count()
    assert read(path, intake, "content") == []
    assert intake.rejected == {"bad_parquet": 1}


@pytest.mark.medium
def test_stretches_of_a_file_give_what_the_whole_gives(tmp_path: Path) -> None:
    """Byte ranges that end inside lines, at line ends and inside oversized lines."""
    rng = random.Random(0)
    rows = [json.dumps({"text": f"{n} " + "x" * rng.choice((0, 3, 50, 400))}) for n in range(60)]
    rows[7], rows[20], rows[41] = "", "{broken", '{"text": "' + "y" * 3000 + '"}'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n")
    limit = 1000
    whole = count(max_characters=limit)
    expected = read(path, whole)
    assert whole.rejected == {"bad_json": 1, "oversized": 1}
    for size in (1, 2, 7, 64, 333, 1000, 4000):
        intake = count(max_characters=limit)
        assert read(path, intake, shard_bytes=size) == expected
        assert intake.rejected == whole.rejected
        offsets = [row["offset"] for row in intake.quarantine]
        assert offsets == [row["offset"] for row in whole.quarantine]
        # Each line is counted in exactly one range, so line numbers of the file can be computed.
        assert intake.num_lines == whole.num_lines == {"rows.jsonl": 60}


def test_row_groups_are_stretches_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": [f"text {n}" for n in range(50)] + [None]})
    pyarrow.parquet.write_table(table, path, row_group_size=8)
    expected = read(path, count())
    intake = count()
    assert read(path, intake, shard_bytes=1) == expected
    assert [row["line"] for row in intake.quarantine] == [51]


def test_zstd_rows_and_streams_that_break_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    rows = [json.dumps({"text": f"row {i} {i * 7919 % 1000}"}) + "\n" for i in range(20000)]
    # Two frames, as written by a tool that appends to a file.
    frames = ["".join(rows[:5000]), "".join(rows[5000:])]
    path.write_bytes(b"".join(zstandard.compress(frame.encode()) for frame in frames))
    assert len(read(path, count())) == 20000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    intake = count()
    assert 5000 <= len(read(path, intake)) < 20000
    assert intake.rejected == {"truncated_stream": 1}
    for name in ("empty.jsonl.zst", "empty.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
        intake = count()
        assert read(tmp_path / name, intake) == []
        assert intake.rejected == {"truncated_stream": 1}
    (tmp_path / "empty.jsonl").write_bytes(b"")
    intake = count()
    assert read(tmp_path / "empty.jsonl", intake) == []
    assert intake.seen == 0


def test_files_behind_a_url(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    rows = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(100))
    store.pipe("/corpus/a/rows.jsonl", rows.encode())
    store.pipe("/corpus/b/rows.jsonl.gz", gzip.compress(rows.encode()))
    store.pipe("/corpus/note.txt", b"a note")
    try:
        documents = read("memory://corpus", count(), shard_bytes=300)
        assert len(documents) == 201
        assert document_id("name", "a/rows.jsonl", 0) in {document.id for document in documents}
        assert len(read("memory://corpus/**/*.jsonl.gz", count())) == 100
    finally:
        store.rm("/corpus", recursive=True)


def test_text_files_of_a_tree_are_one_shard(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "bad.py").write_bytes(b"caf\xe9")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    intake = count()
    assert len(read(tmp_path, intake)) == 20
    assert intake.rejected == {"bad_utf8": 1}
    assert intake.first == ("bad.py", 1, 0)


def test_globs_are_relative_to_their_literal_part(tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/c/y.txt", "b/z.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files(str(tmp_path / "**" / "*.txt"), "key")
    assert found.root == str(tmp_path)
    assert sorted(found.sizes) == ["a/x.txt", "b/c/y.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"data\.sources\.0\.path: .*nowhere does not exist"),
        ("data.bin", r"data\.bin has none of the suffixes \.txt"),
        ("folder", r"no files with the suffixes"),
        ("*.md", r"no files with the suffixes"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        find_files(str(tmp_path / name), "data.sources.0.path")


def test_suffixes_are_read_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("a")
    (tmp_path / "rows.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "b"}\n'))
    assert sorted(document.text for document in read(tmp_path, count())) == ["a", "b"]


def test_files_that_no_reader_takes_are_named_and_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.html", "c.HTML", "d.json", "Makefile", ".git/x.txt", ".note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.md").symlink_to(tmp_path / "a.txt")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "pipe.md").symlink_to(tmp_path / "pipe.txt")
    found = find_files(str(tmp_path), "key")
    # A dangling link is rejected by the reader, with a reason. Hidden files are not looked at.
    assert sorted(found.sizes) == ["a.txt", "gone.md", "link.md"]
    assert describe_ignored(found.ignored) == (
        "6 files: 2 .html, 2 not regular (pipe, device or link to a folder), 1 .json, "
        "1 without a suffix (Makefile, b.html, c.HTML, …)"
    )
    with pytest.raises(ConfigError, match=r"key: .*pipe\.txt is not a regular file"):
        find_files(str(tmp_path / "pipe.txt"), "key")
    hidden = find_files(str(tmp_path / ".git"), "key")
    assert list(hidden.sizes) == ["x.txt"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.pdf").write_text("")
    with pytest.raises(ConfigError, match=r"suffixes \.txt.* in .*only; found 1 file: 1 \.pdf"):
        find_files(str(tmp_path / "only"), "key")
