"""A plan says yes exactly when preparing the data succeeds, and proposes numbers that work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.config import DataConfig
from longred.data import estimate as module
from longred.data.buckets import prepare
from longred.data.estimate import SourceEstimate, estimate, refuse_too_little
from longred.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path, tiny_model_folder: Path) -> Callable[[DataConfig], str]:
    """Prepare a data folder in a new place and return the error's message, or nothing."""
    count = 0

    def message(config: DataConfig) -> str:
        nonlocal count
        count += 1
        folder = tmp_path / f"out-{count}"
        folder.mkdir()
        try:
            prepare(config, tiny_model_folder, folder, tmp_path / f"work-{count}")
        except ConfigError as error:
            return str(error)
        return ""

    return message


def refusal(config: DataConfig, tokenizer_folder: Path) -> str:
    try:
        assert refuse_too_little(config, tokenizer_folder) == []
    except ConfigError as error:
        return str(error)
    return ""


def verdicts(found: list[SourceEstimate]) -> set[str]:
    return {bucket.verdict for source in found for bucket in source.buckets}


def write_documents(path: Path, count: int, words: int) -> dict[str, Any]:
    """Write a source of `count` documents of as many words, and return it."""
    rows = [{"text": f"{n} " + "some words " * (words // 2)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "few", "kind": "files", "path": str(path)}


@pytest.mark.parametrize("num_tokens", [98_304, 131_072, 196_608])
def test_the_answer_of_a_plan_is_that_of_the_run(
    make_config: Callable[..., DataConfig],
    tiny_model_folder: Path,
    run: Callable[[DataConfig], str],
    num_tokens: int,
) -> None:
    """The corpus has 150 thousand tokens, most of them in documents for any bucket."""
    config = make_config(num_tokens=num_tokens)
    message = run(config)
    assert refusal(config, tiny_model_folder) == message
    found = estimate(config, tiny_model_folder)
    assert found[0].is_exact
    assert found[0].problem == (message or None)
    assert ("too little" in verdicts(found)) == bool(message)


def test_the_number_that_a_refusal_proposes_works(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, run: Callable[..., str]
) -> None:
    message = refusal(make_config(num_tokens=8_000_000), tiny_model_folder)
    found = re.search(r"Lower data\.num_tokens to (\d+)", message)
    assert found
    assert 50_000 < int(found[1]) < 150_000
    assert run(make_config(num_tokens=int(found[1]))) == ""
    # The next larger number of as many digits need not work, half as much again never does.
    assert run(make_config(num_tokens=int(int(found[1]) * 1.5)))


def test_documents_of_the_wrong_length_get_the_key_that_helps(
    make_config: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
    run: Callable[..., str],
) -> None:
    source = write_documents(tmp_path / "middle.jsonl", 900, 40)
    config = make_config(sources=[source], min_long_tokens=256)
    message = refusal(config, tiny_model_folder)
    assert "the long bucket needs" in message
    assert "the short bucket" not in message
    found = re.search(r"data\.min_long_tokens to (\d+)", message)
    assert found
    assert run(config.model_copy(update={"min_long_tokens": int(found[1])})) == ""


def test_no_held_out_document_is_refused_before_the_run_with_a_fraction_that_works(
    make_config: Callable[..., DataConfig],
    tiny_model_folder: Path,
    tmp_path: Path,
    run: Callable[..., str],
) -> None:
    source = write_documents(tmp_path / "few.jsonl", 24, 4000)
    config = make_config(sources=[source], validation_fraction=0.001)
    message = refusal(config, tiny_model_folder)
    assert message.startswith("data.validation_fraction: 0.001 of the documents are held out")
    assert run(config) == message
    found = re.search(r"raise it to ([\d.]+)", message)
    assert found
    assert run(config.model_copy(update={"validation_fraction": float(found[1])})) == ""


def test_a_few_documents_do_not_fit_three_times(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Two documents have more than enough tokens, but three buckets want one each."""
    source = write_documents(tmp_path / "few.jsonl", 2, 40_000)
    config = make_config(sources=[source], validation_fraction=0.01)
    (found,) = estimate(config, tiny_model_folder)
    assert all(b.available_tokens and b.available_tokens > 65536 for b in found.buckets)
    assert "too little" in verdicts([found])
    assert refusal(config, tiny_model_folder)


def test_whole_text_files_too_few_for_the_buckets_are_told_of_the_cut(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "books").mkdir()
    for name in ("a", "b"):
        (tmp_path / "books" / f"{name}.txt").write_text(f"{name} some words\n\n" * 8000)
    source = {"name": "books", "kind": "files", "path": str(tmp_path / "books")}
    config = make_config(sources=[source], split_bytes=None, validation_fraction=0.01)
    assert "try data.split_bytes=16384" in refusal(config, tiny_model_folder)


def test_a_sample_says_how_probable_it_is(
    make_config: Callable[..., DataConfig],
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EXACT_BYTES", 0)
    seen: dict[str, list[float]] = {"fits": [], "tight": [], "too little": []}
    for num_tokens in (16384, 50_000, 70_000, 90_000, 8_000_000):
        (found,) = estimate(make_config(num_tokens=num_tokens), tiny_model_folder)
        assert not found.is_exact
        for bucket in found.buckets:
            seen[bucket.verdict].append(bucket.chance)
        assert bool(found.problem) == ("too little" in verdicts([found]))
        if found.problem:
            assert re.search(r"Lower data\.num_tokens to \d+", found.problem)
    assert set(seen["fits"]) == {1.0}
    assert set(seen["too little"]) == {0.0}
    assert seen["tight"]
    assert all(0 < chance < 1 for chance in seen["tight"])


def test_needs_of_several_buckets_add_up_in_a_sample(
    make_config: Callable[..., DataConfig],
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No bucket alone needs more than the sample may have missed, but together they do."""
    monkeypatch.setattr(module, "EXACT_BYTES", 0)
    config = make_config(
        num_tokens=600_000, ratio={"long": 1, "short": 1, "original": 1}, shard_bytes=4096
    )
    with pytest.raises(ConfigError, match=r"or more need [\d,]+ tokens together from source words"):
        refuse_too_little(config, tiny_model_folder)


def test_sources_behind_a_network_are_left_out(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, corpus: Path
) -> None:
    sources = [
        {"name": "words", "kind": "files", "path": str(corpus)},
        {"name": "hub", "kind": "hub", "path": "some/data", "revision": "0" * 40},
        {"name": "far", "kind": "files", "path": "memory://nowhere"},
    ]
    assert refuse_too_little(make_config(sources=sources), tiny_model_folder) == ["hub", "far"]


def test_held_out_text_may_come_from_a_source_that_is_not_looked_at(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    few = write_documents(tmp_path / "few.jsonl", 24, 4000)
    hub = {"name": "hub", "kind": "hub", "path": "some/data", "revision": "0" * 40}
    config = make_config(sources=[few, hub], validation_fraction=0.001)
    assert refuse_too_little(config, tiny_model_folder) == ["hub"]
    without = make_config(
        sources=[few, {**hub, "buckets": {"long": 1.0}}], validation_fraction=0.001
    )
    with pytest.raises(ConfigError, match=r"^data\.validation_fraction"):
        refuse_too_little(without, tiny_model_folder)


def test_too_many_bad_rows_are_refused_before_the_run(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, corpus: Path
) -> None:
    with corpus.open("ab") as file:
        file.write(b"null\n" * 3)
    with pytest.raises(ConfigError, match=r"max_rejected_fraction: 3 of 303 rows") as caught:
        refuse_too_little(make_config(), tiny_model_folder)
    # The file with the evidence is deleted, so it is not named.
    assert "quarantine" not in str(caught.value)
