"""The same bytes with every executor and after every kind of interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.config import DataConfig
from longred.data import executors, tokenise
from longred.data.buckets import prepare
from longred.data.executors import grouped, run_shards
from longred.data.shards import read_record
from longred.data.sources import shards_of
from longred.data.tokenise import Job, tokenise_shard
from longred.errors import ConfigError, LongredError, MismatchError
from longred.store.artifacts import sha256_file

PREPARE = """
import json, sys
from pathlib import Path
from longred.config import DataConfig
from longred.data.buckets import prepare
if __name__ == "__main__":
    config, tokenizer, folder, work = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    prepare(DataConfig(**json.loads(config)), Path(tokenizer), Path(folder), Path(work))
"""


class Interrupted(Exception):
    pass


@pytest.fixture
def many_shards(
    make_config: Callable[..., DataConfig], write_corpus: Callable[..., Path], tmp_path: Path
) -> Callable[..., DataConfig]:
    """Build a data section with about twenty shards of two sources, and practice."""
    second = write_corpus(tmp_path / "second.jsonl", num_documents=200, seed=1)
    sources = [
        {"name": "words", "kind": "files", "path": str(tmp_path / "corpus.jsonl")},
        {"name": "others", "kind": "files", "path": str(second)},
        {"name": "practice", "kind": "practice", "length": 64, "buckets": {"short": 1}},
    ]

    def make(**executor: Any) -> DataConfig:
        return make_config(sources=sources, shard_bytes=20_000, executor=executor)

    return make


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "metrics.jsonl"  # contains times
    }


@pytest.fixture
def expected(
    many_shards: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> dict[str, str]:
    """Digests of an uninterrupted run with one worker."""
    folder = tmp_path / "expected"
    folder.mkdir()
    prepare(many_shards(num_workers=1), tiny_model_folder, folder, tmp_path / "expected-work")
    return digests(folder)


@pytest.mark.medium
@pytest.mark.parametrize(
    "executor",
    [{"num_workers": 2, "max_tasks": 3}, {"kind": "datatrove", "num_workers": 2, "max_tasks": 3}],
    ids=["two-processes", "datatrove"],
)
def test_the_same_bytes_whoever_tokenises(
    executor: dict[str, Any],
    expected: dict[str, str],
    many_shards: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    told: list[tuple[int, int, str]] = []
    prepare(
        many_shards(**executor),
        tiny_model_folder,
        folder,
        tmp_path / "work",
        on_progress=lambda *state: told.append(state),
    )
    assert digests(folder) == expected
    index = json.loads((folder / "index.json").read_text())
    done, total, text = told[-1]
    assert done == total == index["tokens"]["read"]
    assert "M tokens/s" in text
    assert "0 rejected" in text


def test_only_missing_shards_are_done_again_after_every_kind_of_end(
    expected: dict[str, str],
    many_shards: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupt the preparation repeatedly in the middle of a shard."""
    config = many_shards(num_workers=1)
    work, folder = tmp_path / "work", tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 3000)
    encode, finished = tokenise._Tokeniser._encode, []
    calls = 0

    def interrupt(self: Any, batch: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls % 25 == 0:
            raise Interrupted
        return encode(self, batch)

    run = tokenise._Tokeniser.run

    def note(self: Any) -> Any:
        record = run(self)
        finished.append((self.shard.name, self.shard.number, self.shard.held_out_only))
        return record

    monkeypatch.setattr(tokenise._Tokeniser, "_encode", interrupt)
    monkeypatch.setattr(tokenise._Tokeniser, "run", note)
    interruptions = 0
    while True:
        try:
            prepare(config, tiny_model_folder, folder, work)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 3
    assert digests(folder) == expected
    assert len(set(finished)) == len(finished) > 10


@pytest.mark.slow
def test_killed_with_all_its_processes_and_run_again(
    expected: dict[str, str],
    many_shards: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    config = many_shards(num_workers=2).model_dump_json()
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE)
    work, folder = tmp_path / "work", tmp_path / "folder"
    command = [sys.executable, str(script), config, str(tiny_model_folder), str(folder), str(work)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tokenise.__file__).parents[2])}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not list(work.glob("shards/*/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("shards/*/[0-9]*.json")}
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert digests(folder) == expected
    for path, written in kept.items():
        assert path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_lost_process_is_named_and_nothing_hangs(
    many_shards: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = many_shards(num_workers=2)
    job = Job(config, str(tiny_model_folder), str(tmp_path / "work"), "identity")
    monkeypatch.setattr(executors, "_tokenise", _end_abruptly)
    with pytest.raises(LongredError, match="a tokenising process was lost"):
        run_shards(job, list(shards_of(config, 0)), lambda counts: None)


def _end_abruptly(*_: Any) -> None:
    os._exit(9)


@pytest.mark.medium
@pytest.mark.parametrize("executor", [{"num_workers": 2}, {"kind": "datatrove"}])
def test_bad_rows_end_the_preparation_with_a_list_of_them(
    executor: dict[str, Any],
    many_shards: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    config = many_shards(**executor)
    corpus.write_bytes(b"{broken\n" + corpus.read_bytes())
    with pytest.raises(ConfigError, match=r"data\.max_rejected_fraction: 1 of .* 1 bad_json") as it:
        prepare(config, tiny_model_folder, tmp_path, tmp_path / "work")
    listed = str(it.value).partition(", listed in ")[2].partition(";")[0]
    (row,) = [json.loads(line) for line in Path(listed).read_text().splitlines()]
    assert (row["path"], row["raw"]) == ("corpus.jsonl", "{broken")


@pytest.mark.medium
def test_a_flipped_byte_in_a_shard_is_refused_by_name(
    many_shards: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    config, work, folder = many_shards(num_workers=1), tmp_path / "work", tmp_path / "folder"
    folder.mkdir()
    prepare(config, tiny_model_folder, folder, work)
    path = work / "shards/words/000003.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        MismatchError, match=r"words/000003\.bin: differs .*shard 3 of source words"
    ):
        prepare(config, tiny_model_folder, folder, work)
    path.with_suffix(".json").unlink()
    prepare(config, tiny_model_folder, folder, work)


def test_a_record_counts_only_for_its_own_work(
    many_shards: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    config = many_shards()
    job = Job(config, str(tiny_model_folder), str(tmp_path / "work"), "identity")
    shard = next(shards_of(config, 0))
    record = tokenise_shard(job, shard)
    assert read_record(shard, job.folder, "identity") == record
    assert read_record(shard, job.folder, "another") is None
    path = shard.path(job.folder, ".bin")
    path.write_bytes(path.read_bytes()[:-1])
    assert read_record(shard, job.folder, "identity") is None


def test_groups_are_bounded_and_complete(
    many_shards: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = list(shards_of(many_shards(), 0))
    assert grouped(shards, 1000) == [shards]
    monkeypatch.setattr(executors, "BYTES_PER_GROUP", 1)
    for count in (1, 3, 1000):
        groups = grouped(shards, count)
        assert [shard for group in groups for shard in group] == shards
        assert len(groups) == min(count, len(shards))
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
