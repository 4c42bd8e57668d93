"""The data folder as a whole: shares, boundaries, splits, resume, errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longred.config import DataConfig, load_recipe
from longred.data import filling
from longred.data.buckets import prepare
from longred.data.documents import document_id, is_held_out
from longred.data.layout import BlockFile
from longred.data.loader import StepLoader
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError, PreflightError
from longred.store.artifacts import sha256_file

BUCKETS = ("long", "short", "original")


@pytest.fixture
def run(tmp_path: Path, tiny_model_folder: Path) -> Callable[..., Path]:
    """Prepare a data folder; the default is a new work folder."""
    count = 0

    def prepare_folder(config: DataConfig, work: Path | None = None, **options: Any) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"out-{count}"
        folder.mkdir()
        prepare(config, tiny_model_folder, folder, work or tmp_path / f"work-{count}", **options)
        return folder

    return prepare_folder


@pytest.fixture
def texts(corpus: Path) -> dict[str, str]:
    """Texts of the corpus by document id."""
    found, offset = {}, 0
    for line in corpus.read_bytes().splitlines(keepends=True):
        found[document_id("words", corpus.name, offset)] = json.loads(line)["text"]
        offset += len(line)
    return found


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in files
        if path.name != "metrics.jsonl"  # contains times
    }


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return index


def test_buckets_have_exactly_their_ratio(
    make_config: Callable[..., DataConfig], run: Callable[..., Path]
) -> None:
    folder = run(make_config())
    tokens = {}
    for bucket in BUCKETS:
        file = BlockFile(folder, bucket)
        tokens[bucket] = len(file) * file.block_length
    assert tokens == {"long": 16384, "short": 12288, "original": 4096}
    step = StepLoader(folder, rows={"long": 1, "short": 6, "original": 1}, seed=0).next_step()
    assert {bucket: rows.input_ids_BT.numel() for bucket, rows in step.items()} == {
        "long": 256,
        "short": 192,
        "original": 64,
    }


def pieces_of(folder: Path) -> list[tuple[str, str, list[int]]]:
    """Return (split, bucket, tokens) of each document segment in each block."""
    pieces = []
    for split in ("train", "held_out"):
        for bucket in BUCKETS:
            file = BlockFile(folder, bucket, split)
            for block in range(len(file)):
                ids, start = file[block], 0
                for end in file.document_ends(block):
                    pieces.append((split, bucket, ids[start:end].tolist()))
                    start = int(end)
    return pieces


def test_a_bucket_of_zero_is_empty_and_the_others_keep_their_ratio(
    make_config: Callable[..., DataConfig], run: Callable[..., Path]
) -> None:
    folder = run(make_config(ratio={"long": 3, "short": 1, "original": 0}))
    index = index_of(folder)
    blocks = {name: entry["num_blocks"] for name, entry in index["train"].items()}
    assert blocks == {"long": 96, "short": 256, "original": 0}
    assert index["held_out"]["original"]["num_blocks"] == 0
    assert index["held_out"]["short"]["num_blocks"] > 0
    assert len(BlockFile(folder, "original")) == 0
    step = StepLoader(folder, rows={"long": 1, "short": 2}, seed=0).next_step()
    assert {bucket: rows.input_ids_BT.numel() for bucket, rows in step.items()} == {
        "long": 256,
        "short": 64,
    }


def test_a_source_that_no_bucket_needs_is_not_read(
    make_config: Callable[..., DataConfig],
    run: Callable[..., Path],
    write_corpus: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = write_corpus(tmp_path / "other.jsonl", num_documents=20, seed=1)
    words = make_config().sources[0].model_dump()
    other = {**words, "name": "other", "path": str(path), "buckets": {"original": 1.0}}
    sources = [{**words, "buckets": {"long": 1.0, "short": 1.0}}, other]
    ratio = {"long": 3, "short": 1, "original": 0}
    index = index_of(run(make_config(sources=sources, ratio=ratio)))
    assert (index["sources"]["other"]["documents"], index["sources"]["other"]["shards"]) == (0, 0)
    assert index["train"]["short"]["num_blocks"] == 256


def test_held_out_short_blocks_come_from_their_source_though_none_is_trained(
    make_config: Callable[..., DataConfig],
    run: Callable[..., Path],
    write_corpus: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = write_corpus(tmp_path / "other.jsonl", num_documents=300, seed=1)
    words = make_config().sources[0].model_dump()
    sources = [
        {**words, "buckets": {"long": 1.0}},
        {**words, "name": "other", "path": str(path), "buckets": {"short": 1.0}},
    ]
    folder = run(make_config(sources=sources, ratio={"long": 1, "short": 0, "original": 0}))
    blocks = index_of(folder)["sources"]["other"]["blocks"]
    assert blocks["train"] == {"long": 0, "short": 0, "original": 0}
    assert blocks["held_out"]["short"] == index_of(folder)["held_out"]["short"]["num_blocks"] == 64


def test_buckets_and_splits_share_no_document_and_blocks_hold_true_text(
    make_config: Callable[..., DataConfig],
    run: Callable[..., Path],
    texts: dict[str, str],
    tiny_model_folder: Path,
) -> None:
    """Find by brute force the one document that contains each segment."""
    config = make_config()
    folder = run(config)
    tokenizer = TextTokenizer(tiny_model_folder, add_bos=True)
    encoded = dict(zip(texts, tokenizer.encode(list(texts.values())), strict=True))
    strings = {id: ids.astype("<u4").tobytes() for id, ids in encoded.items()}
    homes: dict[str, set[tuple[str, str]]] = {}
    starts: set[tuple[str, int]] = set()
    num_pieces = 0
    for split, bucket, tokens in pieces_of(folder):
        needle = np.array(tokens, dtype="<u4").tobytes()
        if len(tokens) < 16:
            continue  # the short end of a cut piece may occur in several documents
        num_pieces += 1
        (document,) = [id for id, string in strings.items() if needle in string]
        homes.setdefault(document, set()).add((split, bucket))
        start = strings[document].find(needle)
        assert (document, start) not in starts
        starts.add((document, start))
        assert is_held_out(document, config.validation_fraction) == (split == "held_out")
    assert num_pieces > 500
    assert all(len(home) == 1 for home in homes.values())


def test_only_the_long_bucket_is_packed_and_its_pieces_are_long_enough(
    make_config: Callable[..., DataConfig], run: Callable[..., Path]
) -> None:
    folder = run(make_config())
    for split in ("train", "held_out"):
        for bucket in ("short", "original"):
            file = BlockFile(folder, bucket, split)
            assert all(file.document_ends(i).tolist() == [len(file[i])] for i in range(len(file)))
    file = BlockFile(folder, "long")
    ends = [file.document_ends(block) for block in range(len(file))]
    assert any(len(end) > 1 for end in ends)
    for end in ends:
        lengths = np.diff(end, prepend=0)
        assert lengths.sum() == 256
        assert (lengths[:-1] >= 128).all()  # only the last piece of a block is cut


def test_bos_stands_at_document_starts_only(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], tiny_model_folder: Path
) -> None:
    bos = TextTokenizer(tiny_model_folder, add_bos=True).bos_token_id
    starts = 0
    for _, _, tokens in pieces_of(run(make_config())):
        assert bos not in tokens[1:]
        starts += tokens[0] == bos
    assert starts > 50
    without = pieces_of(run(make_config(add_bos=False)))
    assert not any(bos in tokens for _, _, tokens in without)


def test_tokens_are_conserved(
    make_config: Callable[..., DataConfig], run: Callable[..., Path]
) -> None:
    folder = run(make_config())
    index = index_of(folder)
    tokens = index["tokens"]
    assert tokens["read"] == tokens["written"] + tokens["dropped"]
    sizes = [path.stat().st_size for path in folder.rglob("*.bin")]
    assert tokens["written"] * 2 == sum(sizes)
    source = index["sources"]["words"]
    assert sum(source["dropped_tokens"].values()) == tokens["dropped"]
    assert source["tokens"] == 32768


def test_losing_a_token_is_noticed(
    make_config: Callable[..., DataConfig],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = filling._Split._place

    def lose(self: Any, quota: Any, shard: int, start: int, length: int) -> None:
        place(self, quota, shard, start, length - 1)

    monkeypatch.setattr(filling._Split, "_place", lose)
    with pytest.raises(RuntimeError, match=r"words: \d+ tokens were read, but"):
        run(make_config())


def test_the_same_text_gives_the_same_bytes(
    make_config: Callable[..., DataConfig], run: Callable[..., Path]
) -> None:
    config = make_config()
    first = digests(run(config))
    assert first == digests(run(config))
    assert "tokens/long.ends.npy" in first
    assert first != digests(run(make_config(seed=1)))


def test_progress_of_other_settings_is_not_used(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    run(make_config(), work)
    other = make_config(seed=1)
    assert digests(run(other, work)) == digests(run(other))


def test_a_bucket_that_cannot_be_filled(
    make_config: Callable[..., DataConfig], run: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(make_config(num_tokens=8_000_000))
    message = str(caught.value)
    assert message.startswith("data.num_tokens: not enough text: ")
    assert "the long bucket needs 4,000,000 tokens from source words" in message
    assert "the original bucket needs" in message
    assert "Lower data.num_tokens" in message


def test_a_bucket_that_a_sample_shows_cannot_be_filled(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    # Enough text for every bucket but the long one.
    work, ratio = tmp_path / "work", {"long": 998, "short": 1, "original": 1}
    with pytest.raises(ConfigError) as caught:
        run(make_config(num_tokens=4_096_000, ratio=ratio, shard_bytes=4096), work)
    message = str(caught.value)
    assert "the long bucket needs 4,087,808 tokens from source words, about " in message
    assert "the short bucket" not in message
    assert "the original bucket" not in message
    assert not list(work.rglob("*.json"))


@pytest.mark.medium
def test_a_corpus_that_may_be_enough_is_tokenised(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run(make_config(shard_bytes=4096))
    assert index_of(folder)["train"]["long"]["num_blocks"] == 64
    # Slightly more tokens than the text has: the estimate from a sample passes, the exact count
    # fails.
    work = tmp_path / "work"
    with pytest.raises(ConfigError, match="could be filled"):
        run(make_config(shard_bytes=4096, num_tokens=131072), work)
    assert list(work.rglob("*.json"))


def test_rare_long_documents_are_not_taken_for_none(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], corpus: Path
) -> None:
    # All text of the long bucket is in the last shards, which a sample may miss.
    lines = corpus.read_text().splitlines()
    rows = [json.dumps({"text": f"{n} " + "long words " * 1500}) for n in range(12)]
    corpus.write_text("\n".join([*lines, *rows]) + "\n")
    config = make_config(target_window=4096, shard_bytes=16384, validation_fraction=0.01)
    assert index_of(run(config))["train"]["long"]["num_blocks"] == 4


def test_documents_held_out_are_whole_and_unseen(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], texts: dict[str, str]
) -> None:
    config = make_config()
    lines = (run(config) / "held_out" / "documents.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 30
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        assert row["text"] == texts[row["id"]]
        assert is_held_out(row["id"], config.validation_fraction)
        assert (row["source"], row["path"]) == ("words", "corpus.jsonl")


@pytest.mark.medium
def test_sources_share_buckets_as_asked_in_both_splits(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], corpus: Path
) -> None:
    pair = [
        {
            "name": "words",
            "kind": "files",
            "path": str(corpus),
            "buckets": {"long": 1, "short": 0.6, "original": 1},
        },
        {"name": "practice", "kind": "practice", "length": 64, "buckets": {"short": 0.4}},
    ]
    folder = run(make_config(sources=pair))
    index = index_of(folder)
    blocks = {name: source["blocks"] for name, source in index["sources"].items()}
    assert blocks["words"]["train"] == {"long": 64, "short": 230, "original": 64}
    assert blocks["practice"]["train"] == {"long": 0, "short": 154, "original": 0}
    held_out = [blocks[name]["held_out"]["short"] for name in ("words", "practice")]
    assert held_out[0] / sum(held_out) == pytest.approx(0.6, abs=0.02)
    # Practice has no natural text to evaluate on.
    rows = (folder / "held_out" / "documents.jsonl").read_text().splitlines()
    assert {json.loads(row)["source"] for row in rows} == {"words"}


@pytest.mark.medium
def test_every_stretch_of_a_bucket_file_is_a_fair_sample(
    make_config: Callable[..., DataConfig],
    run: Callable[..., Path],
    write_corpus: Callable[..., Path],
    tmp_path: Path,
) -> None:
    left = write_corpus(tmp_path / "left.jsonl", num_documents=200)
    right = tmp_path / "right.jsonl"
    right.write_text(
        "".join(json.dumps({"text": f"{n} " + "9 " * 2000}) + "\n" for n in range(100))
    )
    pair = [{"name": p.stem, "kind": "files", "path": str(p)} for p in (left, right)]
    file = BlockFile(run(make_config(sources=pair)), "short")
    nines = [len(set(file[block].tolist())) <= 6 for block in range(64)]
    assert 20 <= sum(nines) <= 44


def test_bad_rows_are_counted_and_kept(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], corpus: Path
) -> None:
    with corpus.open("ab") as file:
        file.write(b'{"text": 3}\n{"text": "\xff"}\nnull\n')
    with pytest.raises(ConfigError, match=r"data\.max_rejected_fraction: 3 of 303 rows"):
        run(make_config())
    folder = run(make_config(max_rejected_fraction=0.01))
    rejected = index_of(folder)["sources"]["words"]["rejected"]
    assert rejected == {"bad_utf8": 1, "not_object": 1, "wrong_type": 1}
    rows = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in rows) == sorted(rejected)
    assert {row["line"] for row in rows} == {301, 302, 303}


def test_no_text_at_all(
    make_config: Callable[..., DataConfig], run: Callable[..., Path], corpus: Path
) -> None:
    corpus.write_text("\n\n")
    with pytest.raises(ConfigError, match=r"data\.sources\.0: words has no usable documents"):
        run(make_config())


def test_a_disk_that_is_too_small(
    make_config: Callable[..., DataConfig],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PreflightError, match="GB are needed for"):
        run(make_config())


@pytest.mark.medium
def test_the_demo_recipe_in_small(run: Callable[..., Path]) -> None:
    data = load_recipe("demo").data
    # The test tokenizer gives about twice as many tokens per text as the demo's own.
    config = data.model_copy(update={"num_tokens": 65536, "num_held_out_tokens": 8192})
    index = index_of(run(config))
    train = {bucket: entry["num_blocks"] for bucket, entry in index["train"].items()}
    assert train == {"long": 32, "short": 192, "original": 32}
    blocks = {name: source["blocks"]["train"] for name, source in index["sources"].items()}
    assert [blocks[name]["short"] for name in ("library", "practice-128")] == [115, 77]
