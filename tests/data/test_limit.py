"""The limit of unusable rows holds over a source, whatever its shards and whenever they end."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.config import DataConfig
from longred.data.buckets import prepare
from longred.data.limit import MANY_ROWS, Limit, Watch
from longred.data.sampling import is_beyond_chance
from longred.data.shards import ShardRecord, read_record
from longred.data.sources import shards_of
from longred.data.tokenise import Job, tokenise_shard
from longred.errors import ConfigError

SHARD_BYTES = 20_000


@pytest.fixture
def make_job(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> Callable[..., Job]:
    def make(path: Path, **changes: Any) -> Job:
        source = {"name": "words", "kind": "files", "path": str(path)}
        config = make_config(sources=[source], **{"shard_bytes": SHARD_BYTES, **changes})
        return Job(config, str(tiny_model_folder), str(tmp_path / "work"), "identity")

    return make


def limit_of(job: Job) -> Limit:
    """Count all shards of the source."""
    limit = Limit(job, 0)
    for shard in shards_of(job.config, 0):
        limit.add(shard, tokenise_shard(job, shard))
    return limit


def write_rows(path: Path, rows: list[str]) -> None:
    path.write_text("".join(row + "\n" for row in rows))


@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 10**7])
def test_an_unreadable_file_is_set_aside_whatever_the_shard_sizes(
    shard_bytes: int,
    make_job: Callable[..., Job],
    write_corpus: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """It is the first file; alone in a shard, it leaves that shard without a usable row."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    write_corpus(source / "good.jsonl", num_documents=400)
    (source / "broken-6.parquet").write_bytes(b"PAR1" + bytes(SHARD_BYTES))
    job = make_job(source, max_rejected_fraction=0.005, shard_bytes=shard_bytes)
    first = next(shards_of(job.config, 0))
    assert first.parts[0].path == "broken-6.parquet"
    assert len(first.parts) == (1 if shard_bytes == SHARD_BYTES else 2)
    prepare(job.config, Path(job.tokenizer_folder), folder, job.folder)
    index = json.loads((folder / "index.json").read_text())
    assert index["sources"]["words"]["rejected"] == {"bad_parquet": 1}
    (row,) = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert (row["path"], row["reason"]) == ("broken-6.parquet", "bad_parquet")


def test_more_rows_are_read_before_a_few_are_judged(
    make_job: Callable[..., Job], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """The buckets are full after some of the shards; then 1 of the rows is too much, later not."""
    corpus, folder = write_corpus(tmp_path / "rows.jsonl", num_documents=1200), tmp_path / "folder"
    folder.mkdir()
    corpus.write_bytes(b"{broken\n" + corpus.read_bytes())
    for fraction, name in ((0.9, "lenient"), (0.001, "usual")):
        (folder / name).mkdir()
        job = make_job(corpus, max_rejected_fraction=fraction)
        work = tmp_path / f"work-{name}"
        prepare(job.config, Path(job.tokenizer_folder), folder / name, work)
    rows = [
        json.loads((folder / name / "index.json").read_text())["sources"]["words"]["rows"]
        for name in ("lenient", "usual")
    ]
    assert rows[0] < 1000 <= rows[1]
    job = make_job(corpus, max_rejected_fraction=0.0)
    with pytest.raises(ConfigError, match=rf"1 of {rows[0]} rows of source words .*1 bad_json"):
        prepare(job.config, Path(job.tokenizer_folder), folder, tmp_path / "work-strict")


def test_the_message_counts_lines_of_the_file_and_lists_the_rows(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    good = json.dumps({"text": "fine " * 50})
    path = tmp_path / "rows.jsonl"
    write_rows(path, [good] * 197 + ["{", '{"content": 1, "id": 2}', good])
    job = make_job(path, max_rejected_fraction=0.009)
    limit = limit_of(job)
    assert (limit.seen, limit.num_bad) == (200, 2)
    with pytest.raises(
        ConfigError,
        match=r"^data\.max_rejected_fraction: 2 of 200 rows of source words cannot be used: "
        r"1 bad_json, 1 missing_field, the first at rows\.jsonl, line 198 \(offset \d+\), listed "
        r"in .*; no field text; the first such row has content, id: name it by the source's "
        r"text_field, repair them or raise the limit from 0\.009 to at least 0\.01$",
    ) as caught:
        limit.check()
    listed = str(caught.value).partition(", listed in ")[2].partition(";")[0]
    rows = [json.loads(line) for line in Path(listed).read_text().splitlines()]
    assert [row["reason"] for row in rows] == ["bad_json", "missing_field"]
    limit_of(make_job(path, max_rejected_fraction=0.01)).check()


def test_a_source_without_a_usable_row_is_not_told_to_raise_the_limit(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", ["{" * 100] * 300)
    with pytest.raises(ConfigError, match=r"300 of 300 rows .* in .*words/\*\.quarantine") as it:
        limit_of(make_job(tmp_path / "rows.jsonl")).check()
    assert "raise the limit" not in str(it.value)


def test_empty_rows_do_not_count(make_job: Callable[..., Job], tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ['{"text": ""}'] * 9 + ['{"text": "fine"}'])
    limit = limit_of(make_job(tmp_path / "rows.jsonl", max_rejected_fraction=0.0))
    assert (limit.seen, limit.num_bad) == (10, 0)
    limit.check()


@pytest.fixture
def hopeless(make_job: Callable[..., Job], tmp_path: Path) -> Job:
    """A source whose first 12,000 rows are bad, then 200 good ones: 13 shards."""
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"text": "fine " * 40})
    write_rows(path, ['{"other": 123456}'] * 12_000 + [good] * 200)
    return make_job(path)


def records_of(job: Job) -> list[ShardRecord]:
    found = [read_record(shard, job.folder, job.identity) for shard in shards_of(job.config, 0)]
    return [record for record in found if record]


def test_mostly_bad_rows_end_the_preparation_early_and_again(
    hopeless: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run stops with the same message, and tokenises nothing more."""

    def one_by_one(run: Callable[[Any], None], groups: list[Any], tick: Callable[[], None]) -> None:
        for shard in [shard for group in groups for shard in group]:
            run([shard])
            tick()

    num_shards = len(list(shards_of(hopeless.config, 0)))
    monkeypatch.setattr("longred.data.buckets.canonical_digest", lambda _: hopeless.identity)
    told = []
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"missing_field") as caught:
            prepare(
                hopeless.config,
                Path(hopeless.tokenizer_folder),
                tmp_path,
                hopeless.folder,
                map_groups=one_by_one,
            )
        told.append(str(caught.value))
        done = records_of(hopeless)
    seen = [record.seen for record in done]
    assert told[0] == told[1]
    assert sum(seen) >= MANY_ROWS > sum(seen[:-1])
    assert len(done) < num_shards


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_the_early_end_does_not_depend_on_the_order_of_shards(order: str, hopeless: Job) -> None:
    with pytest.raises(ConfigError) as expected:
        limit_of(hopeless)
    watch, shards = Watch(hopeless), list(shards_of(hopeless.config, 0))
    for shard in shards:
        shard.path(hopeless.folder, ".json").unlink(missing_ok=True)
    watch.expect(shards)
    ended = None
    for number, shard in enumerate(shards if order == "forwards" else reversed(shards)):
        tokenise_shard(hopeless, shard)
        try:
            watch.look()
        except ConfigError as error:
            ended = (number, str(error))
            break
    # Backwards, only the last one completes the rows at the start of the source.
    assert ended is not None
    assert ended[1] == str(expected.value)
    assert (ended[0] == len(shards) - 1) == (order == "backwards")


def test_a_sample_is_judged_by_a_bound_of_chance() -> None:
    """Compare with the sum of Poisson probabilities."""
    for expected in (0.1, 0.3, 2.0, 30.0):
        for count in range(80):
            below = sum(math.exp(-expected) * expected**k / math.factorial(k) for k in range(count))
            if is_beyond_chance(count, expected):
                assert count > expected
                assert 1 - below < 0.0101
            elif count > expected:
                assert 1 - below > 1e-4
    assert not is_beyond_chance(1, 0.2)
    assert is_beyond_chance(4, 0.3)
    assert is_beyond_chance(1, 0.0)
    assert not is_beyond_chance(0, 0.0)
