"""Files with everything that goes wrong in files."""

import gzip
import json
from pathlib import Path

import pytest

from longred.data.documents import Document, document_id
from longred.data.files import find_files, read_files
from longred.data.intake import Intake
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


def read(path: Path | str, intake: Intake, text_field: str = "text") -> list[Document]:
    root, paths = find_files(str(path), "data.sources.0")
    return list(read_files("name", root, paths, text_field, intake))


def test_every_bad_row_is_counted_by_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(ZOO) + b"\n\n")
    intake = Intake("name", 0.99)
    documents = read(path, intake)
    assert [document.text for document in documents] == ["good one", "whole \U0001f600 pair"]
    reasons = [reason for reason in ZOO.values() if reason]
    assert dict(intake.rejected) == {reason: reasons.count(reason) for reason in reasons}
    assert intake.seen == len(ZOO)
    # Evidence: where it was and how it starts.
    assert [row["reason"] for row in intake.quarantine] == reasons
    for row in intake.quarantine:
        raw = path.read_bytes()[row["offset"] :].split(b"\n")[0]
        assert (raw + b"\n").decode("utf-8", "backslashreplace").startswith(row["raw"])
        assert path.read_bytes().split(b"\n")[row["line"] - 1] == raw


def test_too_many_bad_rows_are_an_error_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"text": "fine"})
    path.write_text("\n".join([good] * 98 + ["{", "{"]) + "\n")
    with pytest.raises(
        ConfigError,
        match=r"data\.max_rejected_fraction: 2 of 100 rows .*2 bad_json.*rows\.jsonl:99.*0\.02",
    ):
        read(path, Intake("name", 0.01))
    assert len(read(path, Intake("name", 0.02))) == 98


def test_a_shard_that_is_left_early_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{\n{"text": "fine"}\n{"text": "fine"}\n')
    intake = Intake("name", 0.1)
    root, paths = find_files(str(path), "data.sources.0")
    next(read_files("name", root, paths, "text", intake))
    with pytest.raises(ConfigError, match="1 of 2 rows"):
        intake.end()


def test_empty_rows_are_counted_but_harmless(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": ""}\n' * 9 + '{"text": "fine"}\n')
    intake = Intake("name", 0.0)
    assert len(read(path, intake)) == 1
    assert intake.rejected == {"empty": 9}


def test_ids_are_the_same_on_every_machine(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
        (tmp_path / name / "note.md").write_text("c")
    here = read(tmp_path / "here", Intake("name", 0.0))
    there = read(tmp_path / "there", Intake("name", 0.0))
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
    assert len(read(path, Intake("name", 0.0))) == 20000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    intake = Intake("name", 0.01)
    documents = read(path, intake)
    assert 5000 < len(documents) < 20000
    assert intake.rejected == {"truncated_stream": 1}


def test_parquet_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"content": ["a", None, "", "b"], "n": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    intake = Intake("name", 0.5)
    documents = read(path, intake, "content")
    assert [document.text for document in documents] == ["a", "b"]
    assert documents[1].id == document_id("name", "rows.parquet", 3)
    assert intake.rejected == {"missing_field": 1, "empty": 1}
    with pytest.raises(ConfigError, match=r"no column text .* it has content, n"):
        read(path, Intake("name", 0.0))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="not a whole parquet file"):
        read(path, Intake("name", 0.0), "content")


def test_text_files_of_a_tree_are_one_shard(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "bad.py").write_bytes(b"caf\xe9")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    intake = Intake("name", 0.05)
    assert len(read(tmp_path, intake)) == 20
    assert intake.rejected == {"bad_utf8": 1}
    with pytest.raises(ConfigError, match=r"1 of 21 rows .*bad\.py:1"):
        read(tmp_path, Intake("name", 0.04))


def test_globs_are_relative_to_their_literal_part(tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/c/y.txt", "b/z.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    root, paths = find_files(str(tmp_path / "**" / "*.txt"), "key")
    assert root == tmp_path
    assert sorted(paths) == ["a/x.txt", "b/c/y.txt"]


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
        find_files(str(tmp_path / name), "data.sources.0")
