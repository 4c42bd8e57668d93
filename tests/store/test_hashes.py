"""A file is rehashed exactly when it may have changed."""

import os
import time
from pathlib import Path

import pytest

from longred.store import hashes
from longred.store.artifacts import sha256_file
from longred.store.hashes import FileHashes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was written a while ago."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the files whose bytes are read, in order; treat every file as settled, however new."""
    found: list[Path] = []

    def sha256(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setattr(hashes, "sha256_file", sha256)
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)
    return found


def test_an_unchanged_file_is_read_once_also_by_the_next_process(
    tmp_path: Path, file: Path, read: list[Path]
) -> None:
    memory = tmp_path / "store" / "hashes.json"
    wanted = sha256_file(file)
    assert FileHashes(memory).sha256(file) == wanted
    assert FileHashes(memory).sha256(file) == wanted
    assert read == [file]


def test_a_change_of_equal_size_and_time_is_noticed(
    tmp_path: Path, file: Path, read: list[Path]
) -> None:
    known = FileHashes(tmp_path / "hashes.json")
    before = known.sha256(file)
    times = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known.sha256(file) == sha256_file(file) != before


def test_a_file_that_was_just_written_is_not_trusted(tmp_path: Path, file: Path) -> None:
    memory = tmp_path / "hashes.json"
    FileHashes(memory).sha256(file)
    assert not memory.exists()


@pytest.mark.usefixtures("read")
def test_a_damaged_memory_is_forgotten_and_a_silent_one_is_not_written(
    tmp_path: Path, file: Path
) -> None:
    memory = tmp_path / "hashes.json"
    memory.write_text("[1, 2")
    assert FileHashes(memory, saves=False).sha256(file) == sha256_file(file)
    assert memory.read_text() == "[1, 2"
    FileHashes(memory).sha256(file)
    assert str(file) in memory.read_text()
