"""Windows of documents from every kind of source."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from longred.config import DataConfig
from longred.data import sources
from longred.data.documents import is_held_out
from longred.data.sources import fingerprints, open_sources
from longred.errors import ConfigError, PreflightError


def everything(_: str) -> bool:
    return True


def test_library_documents_agree_with_the_demo_split(
    make_config: Callable[..., DataConfig],
) -> None:
    from longred.demo.corpus import held_out_documents

    config = make_config(sources=[{"name": "stdlib", "kind": "library"}])
    (source,) = open_sources(config)
    documents = [document for window in source.windows(everything) for document in window]
    held_out = {document.path for document in documents if is_held_out(document.id, 0.1)}
    assert held_out == {path for path, _ in held_out_documents()}
    assert len(documents) == source.intake.seen > 300


def test_practice_never_ends_and_makes_only_what_is_wanted(
    make_config: Callable[..., DataConfig],
) -> None:
    practice = {"name": "practice", "kind": "practice", "length": 64, "buckets": {"short": 1}}
    (source,) = open_sources(make_config(sources=[practice]))
    first, second = islice(source.windows(everything), 2)
    assert len({document.id for document in first + second}) == 2 * sources.PRACTICE_WINDOW
    some = next(source.windows(lambda document: document < "2"))
    assert some == [document for document in first if document.id < "2"]
    assert 0 < len(some) < len(first)


def test_two_sources_of_the_same_texts_are_refused(
    make_config: Callable[..., DataConfig], corpus: Path
) -> None:
    files = {"kind": "files", "path": str(corpus)}
    library = {"kind": "library"}
    for twice in (files, library):
        pair = [{"name": "a", **twice}, {"name": "b", **twice}]
        with pytest.raises(ConfigError, match=r"data\.sources: a and b read the same texts"):
            open_sources(make_config(sources=pair))


def test_windows_are_bounded_and_complete(
    make_config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = open_sources(make_config())
    (whole,) = source.windows(everything)
    monkeypatch.setattr(sources, "WINDOW_BYTES", 30_000)
    windows = list(source.windows(everything))
    assert len(windows) > 5
    assert [document for window in windows for document in window] == whole


def test_hub_sources_need_a_pinned_revision(make_config: Callable[..., DataConfig]) -> None:
    hub = {"name": "hub", "kind": "hub", "path": "someone/something"}
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.revision: pin the commit"):
        open_sources(make_config(sources=[hub]))


def test_hub_rows_are_read_as_a_stream(
    make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = [{"content": f"row {number}"} for number in range(50)] + [{"content": None}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub = {"name": "hub", "kind": "hub", "path": str(folder), "revision": "0" * 40}
    config = make_config(sources=[{**hub, "text_field": "content"}], max_rejected_fraction=0.1)
    (source,) = open_sources(config)
    (window,) = source.windows(everything)
    assert [document.text for document in window] == [row["content"] for row in rows[:-1]]
    assert source.intake.rejected == {"missing_field": 1}
    with pytest.raises(ConfigError, match=r"data\.sources\.0: .* cannot be opened"):
        open_sources(make_config(sources=[{**hub, "split": "nowhere"}]))


def test_a_hub_that_cannot_be_reached(
    make_config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    hub = {"name": "hub", "kind": "hub", "path": "some/data", "revision": "0" * 40}
    with pytest.raises(PreflightError, match=r"data\.sources\.0: .*some/data.* cannot be reached"):
        open_sources(make_config(sources=[hub]))


def test_fingerprints_notice_changed_text(
    make_config: Callable[..., DataConfig], corpus: Path
) -> None:
    config = make_config()
    before = fingerprints(config)
    assert before == fingerprints(config)
    corpus.write_text(corpus.read_text().replace("window", "widow", 1))
    assert fingerprints(config) != before
