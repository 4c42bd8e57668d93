"""A plan says yes exactly when preparing the data succeeds, and proposes numbers that work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.cli.data_table import show_data
from longred.config import DataConfig
from longred.data import estimate as module
from longred.data.advice import FINE_STEP, largest_num_tokens
from longred.data.buckets import prepare
from longred.data.capacity import most_tokens
from longred.data.estimate import SourceEstimate, estimate, refuse_too_little, to_json
from longred.data.quotas import least_num_tokens
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


def proposals(message: str) -> list[dict[str, int]]:
    """Return the changes of the data section that a refusal proposes, each to be pasted."""
    alone = r"(?:[Ll]ower|, or) data\.(\w+) to (\d+)|try data\.(\w+)=(\d+), which"
    found = [{a or c: int(b or d)} for a, b, c, d in re.findall(alone, message)]
    both = re.search(r"try data\.split_bytes=(\d+) together with data\.num_tokens=(\d+)", message)
    if both:
        found.append({"split_bytes": int(both[1]), "num_tokens": int(both[2])})
    return found


@pytest.fixture
def books(make_config: Callable[..., DataConfig], tmp_path: Path) -> Callable[..., DataConfig]:
    """Build a data section of three books, cut into few documents of unlike sizes."""
    folder = tmp_path / "books"
    folder.mkdir()
    for name, paragraphs in (("a", 1500), ("b", 1400), ("c", 2000)):
        text = "\n\n".join(f"{name} {n} {'a model reads ' * 8}" for n in range(paragraphs))
        (folder / f"{name}.txt").write_text(text)
    source = {"name": "books", "kind": "files", "path": str(folder)}

    def make(**changes: Any) -> DataConfig:
        return make_config(**{"sources": [source], "split_bytes": 2**15, **changes})

    return make


def test_every_proposal_of_a_refusal_works_when_pasted(
    books: Callable[..., DataConfig], tiny_model_folder: Path, run: Callable[..., str]
) -> None:
    """The text fits 150,000 tokens and 180,000, but neither 115,000 nor 165,000."""
    found = {}
    for num_tokens in (115_000, 150_000, 165_000, 180_000, 2_000_000):
        config = books(num_tokens=num_tokens)
        found[num_tokens] = proposals(refusal(config, tiny_model_folder))
        for changes in found[num_tokens]:
            assert run(config.model_copy(update=changes)) == "", (num_tokens, changes)
    assert found[150_000] == found[180_000] == []
    for num_tokens, least in ((115_000, 105_000), (165_000, 150_000), (2_000_000, 180_000)):
        assert any(changes.get("num_tokens", 0) >= least for changes in found[num_tokens])


def test_more_tokens_are_found_beyond_numbers_that_do_not_fit(
    books: Callable[..., DataConfig],
) -> None:
    config = books(num_tokens=1_000_000)
    least = least_num_tokens(config)

    def works(changed: DataConfig) -> bool:
        return 2 * least < changed.num_tokens < 3 * least or 300 < changed.num_tokens / 1000 < 320

    found = largest_num_tokens(config, works, FINE_STEP)
    assert found
    assert 315_000 < found < 320_000


def test_the_most_tokens_of_a_text_fill_its_buckets(
    books: Callable[..., DataConfig], tiny_model_folder: Path, run: Callable[..., str]
) -> None:
    """Also with what follows from them, here a held-out split of other needs."""

    def settle(changed: DataConfig) -> DataConfig:
        return changed.model_copy(update={"num_held_out_tokens": changed.num_tokens // 40})

    config = books()
    most = most_tokens(config, tiny_model_folder, settle)
    assert run(settle(config.model_copy(update={"num_tokens": most}))) == ""


def test_a_row_of_the_table_says_what_its_bucket_lacks(
    books: Callable[..., DataConfig],
    tiny_model_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = estimate(books(num_tokens=3_000_000), tiny_model_folder)
    show_data(to_json(found))
    lacking = [bucket for bucket in found[0].buckets if bucket.verdict == "too little"]
    assert lacking
    shown = capsys.readouterr().out
    for bucket in lacking:
        assert bucket.filled_tokens is not None
        assert bucket.filled_tokens < bucket.needed_tokens
        assert f"too little ({bucket.filled_tokens:,} could be filled)" in shown


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
    books: Callable[..., DataConfig], tiny_model_folder: Path
) -> None:
    """With fewer tokens as well, if the cut alone does not suffice."""
    for num_tokens, keys in ((32_768, {"split_bytes"}), (2_000_000, {"split_bytes", "num_tokens"})):
        config = books(num_tokens=num_tokens, split_bytes=None)
        (found,) = proposals(refusal(config, tiny_model_folder))
        assert set(found) == keys
        assert found["split_bytes"] == 16384
        assert refusal(config.model_copy(update=found), tiny_model_folder) == ""


def test_a_cut_that_does_not_help_is_not_proposed(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """All pieces but one are duplicates."""
    (tmp_path / "same.txt").write_text("some words\n\n" * 16_000)
    source = {"name": "same", "kind": "files", "path": str(tmp_path / "same.txt")}
    message = refusal(make_config(sources=[source], split_bytes=None), tiny_model_folder)
    assert "not enough text" in message
    assert proposals(message) == []
    assert ". Change data.ratio" in message


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
