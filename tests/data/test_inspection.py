"""Output of `inspect` and `plan`, compared with the real content."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from longred.cli import app
from longred.config import DataConfig
from longred.data.buckets import prepare
from longred.data.documents import document_id, is_held_out
from longred.data.estimate import estimate
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError


@pytest.fixture
def folder(make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "prepared"
    folder.mkdir()
    prepare(make_config(), tiny_model_folder, folder, tmp_path / "work")
    return folder


def test_inspect_shows_buckets_sources_rejects_samples_and_a_picture(
    folder: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    plot = tmp_path / "lengths.png"
    result = CliRunner().invoke(app, ["inspect", str(folder), "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["train", "long", "256", "64", "16,384"] in lines
    assert any(line[:2] == ["words", "files"] for line in lines)
    assert result.output.count("block 0:") == result.output.count("block 2:") == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    # `inspect` never writes to an artifact.
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    as_json = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert json.loads(as_json.output)["sources"]["words"]["tokens"] == 32768


def test_lengths_are_those_of_the_documents(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    lengths = index["sources"]["words"]["lengths"]
    assert len(lengths["edges"]) == len(lengths["documents"]) + 1
    rows = (folder / "shards.jsonl").read_text().splitlines()
    assert sum(lengths["documents"]) == sum(json.loads(row)["documents"] for row in rows)


def test_an_estimate_from_a_whole_small_corpus_is_close(
    make_config: Callable[..., DataConfig], corpus: Path, tiny_model_folder: Path
) -> None:
    config = make_config(num_tokens=65536)
    (found,) = estimate(config, tiny_model_folder)
    tokenizer = TextTokenizer(tiny_model_folder, add_bos=True)
    texts = [json.loads(line)["text"] for line in corpus.read_bytes().splitlines()]
    lengths = [len(ids) for ids in tokenizer.encode(texts)]
    assert found.sampled_documents == 300
    assert found.sampled_tokens == sum(lengths)
    assert found.num_bytes == sum(len(text.encode()) for text in texts)
    offsets = itertools.accumulate(map(len, corpus.read_bytes().splitlines(True)), initial=0)
    ids = [document_id("words", corpus.name, offset) for offset in offsets]
    long_enough = [
        length
        for id, length in zip(ids, lengths, strict=False)
        if length >= 128 and not is_held_out(id, 0.2)
    ]
    (long,) = [bucket for bucket in found.buckets if bucket.bucket == "long"]
    assert (long.available_tokens, long.documents) == (sum(long_enough), len(long_enough))
    assert {bucket.bucket: bucket.verdict for bucket in found.buckets}["original"] == "fits"
    (huge,) = estimate(make_config(num_tokens=8_000_000), tiny_model_folder)
    assert {bucket.verdict for bucket in huge.buckets} == {"too little"}


def test_an_estimate_knows_how_far_compressed_text_expands(
    make_config: Callable[..., DataConfig], corpus: Path, tiny_model_folder: Path
) -> None:
    packed = corpus.with_suffix(".jsonl.zst")
    packed.write_bytes(zstandard.ZstdCompressor().compress(corpus.read_bytes()))
    sources = [{"name": "words", "kind": "files", "path": str(packed)}]
    (plain,) = estimate(make_config(), tiny_model_folder)
    (found,) = estimate(make_config(sources=sources), tiny_model_folder)
    assert found.num_bytes == plain.num_bytes
    assert found.buckets[0].available_tokens == plain.buckets[0].available_tokens


@pytest.mark.slow
def test_plan_reads_a_recipe_and_writes_nothing(tmp_path: Path) -> None:
    changes = ["data.num_tokens=65536", f"store.path={tmp_path / 'store'}"]
    result = CliRunner().invoke(app, ["plan", "demo", *changes, "--json"])
    assert result.exit_code == 0, result.output
    sources = {source["source"]: source for source in json.loads(result.output)["data"]}
    assert sources["practice-128"]["buckets"][0]["available_tokens"] is None
    assert {bucket["verdict"] for bucket in sources["library"]["buckets"]} == {"fits"}
    assert not (tmp_path / "store").exists()


def test_what_is_no_data(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", "nothing", "--store", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
