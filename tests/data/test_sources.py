"""Shards, documents and fingerprints of each kind of source."""

import hashlib
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from longred.config import DataConfig
from longred.data.documents import Document, Intake, is_held_out
from longred.data.shards import Part, Shard
from longred.data.sources import check_sources, fingerprints, kind_of, shards_of
from longred.errors import ConfigError, PreflightError


def read(config: DataConfig, shards: list[Shard], intake: Intake | None = None) -> list[Document]:
    intake = intake or Intake("name", 10**7)
    source = config.sources[0]
    documents = (kind_of(source).read(config, source, shard.parts, intake) for shard in shards)
    return [document for found in documents for document in found]


def test_library_documents_agree_with_the_demo_split(
    make_config: Callable[..., DataConfig],
) -> None:
    from longred.demo.corpus import held_out_documents

    config = make_config(sources=[{"name": "stdlib", "kind": "library"}])
    documents = read(config, list(shards_of(config, 0)))
    held_out = {document.path for document in documents if is_held_out(document.id, 0.1)}
    assert held_out == {path for path, _ in held_out_documents()}
    assert len(documents) > 300


def test_practice_never_ends_and_does_not_depend_on_its_shards(
    make_config: Callable[..., DataConfig],
) -> None:
    practice = {"name": "practice", "kind": "practice", "length": 64, "buckets": {"short": 1}}
    texts = []
    for size in (1, 10**5):
        config = make_config(sources=[practice], shard_bytes=size)
        documents = read(config, list(islice(shards_of(config, 0), 2)))
        assert len({document.id for document in documents}) == len(documents)
        texts.append([document.text for document in documents[:300]])
    assert texts[0] == texts[1]


def test_two_sources_of_the_same_texts_are_refused(
    make_config: Callable[..., DataConfig], corpus: Path
) -> None:
    files = {"kind": "files", "path": str(corpus)}
    library = {"kind": "library"}
    for twice in (files, library):
        pair = [{"name": "a", **twice}, {"name": "b", **twice}]
        with pytest.raises(ConfigError, match=r"data\.sources: a and b read the same texts"):
            check_sources(make_config(sources=pair))


def test_shards_are_bounded_and_complete(
    make_config: Callable[..., DataConfig], corpus: Path, tmp_path: Path
) -> None:
    (whole,) = shards_of(make_config(), 0)
    config = make_config(shard_bytes=30_000)
    shards = list(shards_of(config, 0))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert len(shards) == -(-corpus.stat().st_size // 30_000)
    assert read(config, shards) == read(make_config(), [whole])
    # Small files share a shard.
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text("x" * 1000)
    tree = [{"name": "tree", "kind": "files", "path": str(folder)}]
    config = make_config(sources=tree, shard_bytes=9999)
    sizes = [len(shard.parts) for shard in shards_of(config, 0)]
    assert sizes == [9, 9, 9, 9, 4]


def test_a_shard_survives_json(make_config: Callable[..., DataConfig]) -> None:
    from dataclasses import asdict

    shard = Shard(0, "name", 3, (Part("a", 1, 2, 3), Part("b")), held_out_only=True)
    assert Shard.from_json(json.loads(json.dumps(asdict(shard)))) == shard


def test_hub_sources_need_a_pinned_revision(make_config: Callable[..., DataConfig]) -> None:
    hub = {"name": "hub", "kind": "hub", "path": "someone/something"}
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.revision: pin the commit"):
        next(shards_of(make_config(sources=[hub]), 0))


def test_hub_rows_are_read_as_a_stream_shard_by_shard(
    make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    for number in range(3):
        rows = [{"content": f"{number}: row {row}"} for row in range(20)] + [{"content": None}]
        (folder / f"train-{number}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    hub = {"name": "hub", "kind": "hub", "path": str(folder), "revision": "0" * 40}
    config = make_config(sources=[{**hub, "text_field": "content"}])
    shards = list(shards_of(config, 0))
    assert len(shards) == 3
    intake = Intake("hub", 10**6)
    documents = read(config, shards, intake)
    assert [d.text for d in documents] == [f"{n}: row {row}" for n in range(3) for row in range(20)]
    assert len({document.id for document in documents}) == 60
    assert intake.rejected == {"missing_field": 3}
    with pytest.raises(ConfigError, match=r"source hub\) cannot be opened"):
        next(shards_of(make_config(sources=[{**hub, "split": "nowhere"}]), 0))


def test_a_hub_file_that_cannot_be_parsed(
    make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "good"}\n{"text": "broken\n')
    hub = {"name": "hub", "kind": "hub", "path": str(folder), "revision": "0" * 40}
    config = make_config(sources=[hub])
    with pytest.raises(ConfigError, match=r"shard 0 of .* cannot be parsed .* kind files"):
        read(config, list(shards_of(config, 0)))


def test_a_hub_that_cannot_be_reached(
    make_config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    hub = {"name": "hub", "kind": "hub", "path": "some/data", "revision": "0" * 40}
    with pytest.raises(PreflightError, match=r"data\.sources: .*some/data.* cannot be reached"):
        next(shards_of(make_config(sources=[hub]), 0))


def test_fingerprints_notice_changed_text(
    make_config: Callable[..., DataConfig], corpus: Path, tmp_path: Path
) -> None:
    config = make_config()
    before = fingerprints(config)
    assert before == fingerprints(config)
    corpus.write_text(corpus.read_text().replace("window", "widow", 1))
    assert fingerprints(config) != before
    questions = tmp_path / "questions.txt"
    questions.write_text("one")
    config = make_config(decontaminate=[str(questions)])
    before = fingerprints(config)
    questions.write_text("two")
    assert fingerprints(config) != before


def test_a_dataset_on_the_hub_is_identified_by_its_pin(
    make_config: Callable[..., DataConfig],
) -> None:
    hub = {"name": "hub", "kind": "hub", "path": "some/data", "revision": "0" * 40}
    pin = repr(("some/data", None, "train", "0" * 40))
    expected = {"hub": hashlib.sha256(pin.encode()).hexdigest()}
    assert fingerprints(make_config(sources=[hub])) == expected


@pytest.mark.parametrize("changed", ["deep/train.csv", "README.md", ".huggingface.yaml"])
def test_fingerprints_notice_a_changed_local_copy_of_a_dataset(
    changed: str, make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    for name in ("deep/train.csv", "README.md", ".huggingface.yaml", ".git/index"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text\none\n")
    os.mkfifo(folder / "pipe")
    (folder / "gone.csv").symlink_to(folder / "nowhere")
    hub = {"name": "hub", "kind": "hub", "path": str(folder), "revision": "0" * 40}
    config = make_config(sources=[hub])
    before = fingerprints(config)
    # What `datasets` does not read may change.
    (folder / ".git" / "index").write_text("another\n")
    (folder / changed).touch()
    assert fingerprints(config) == before
    (folder / changed).write_text("text\ntwo\n")
    assert fingerprints(config) != before
    (folder / changed).write_text("text\none\n")
    assert fingerprints(config) == before
    (folder / changed).rename(folder / "new.csv")
    assert fingerprints(config) != before
