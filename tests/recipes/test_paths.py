"""Relative paths in a recipe start in the working directory, whatever the setting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.config import load_recipe
from longred.data.files import find_files
from longred.errors import LongredError, where_paths_start
from longred.evaluation.ruler.materials import read_haystack
from longred.evaluation.ruler.questions import read_questions
from longred.evaluation.suites import suite_path
from longred.models.load import resolve_model
from longred.recipes import RECIPES
from longred.store.artifacts import Store

READERS: dict[str, Callable[[str], Any]] = {
    "model.path": resolve_model,
    "data.sources.0.path": lambda path: find_files(path, "data.sources.0.path"),
    "evaluation.ruler.haystack": lambda path: read_haystack(Path(path)),
    "evaluation.ruler.squad": lambda path: read_questions("squad", Path(path)),
    "evaluation.short.suite": suite_path,
}


@pytest.mark.parametrize("key", READERS)
def test_a_missing_path_says_where_relative_paths_start(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = f"(relative paths start in the working directory, {tmp_path})"
    with pytest.raises(LongredError) as caught:
        READERS[key]("nowhere.yaml")
    assert str(caught.value).startswith(f"{key}: ")
    assert start in str(caught.value)
    with pytest.raises(LongredError) as caught:
        READERS[key](f"{tmp_path}/nowhere.yaml")
    assert start not in str(caught.value)


def test_paths_start_in_the_working_directory_and_not_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
        (folder / "text.txt").write_text(folder.name)
    (beside / "suite.yaml").write_text("")
    recipe = beside / "mine.yaml"
    recipe.write_text((RECIPES / "demo.yaml").read_text("utf-8"))
    monkeypatch.chdir(here)
    assert Store(load_recipe(recipe).store.path).root == here / "outputs"
    files = find_files("text.txt", "data.decontaminate.0")
    assert [files.open(name).read() for name in files.sizes] == [b"here"]
    assert read_haystack(Path("text.txt")) == ["here"]
    with pytest.raises(LongredError, match=r"suite\.yaml does not exist"):
        suite_path("suite.yaml")


def test_only_relative_paths_start_somewhere() -> None:
    assert str(Path.cwd()) in where_paths_start("a/b")
    for path in ("/a", "~/a", "s3://a/b", Path("/a")):
        assert where_paths_start(path) == ""


def test_one_word_names_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = load_recipe("smollm2-135m-32k").data
    for text, name in (
        ("my Books", "my-books"),
        ("corpus/*.txt", "corpus"),
        ("s3://bucket/a.jsonl.gz", "a-jsonl"),
        ("/", "text"),
    ):
        data = load_recipe("smollm2-135m-32k", [f"data={text}"]).data
        (source,) = data.sources
        assert (source.name, source.kind, source.path) == (name, "files", text)
        assert data == packaged.model_copy(update={"sources": data.sources})
    (local,) = load_recipe("demo", ["data=local", "data.sources.0.weight=2"]).data.sources
    assert local.path == f"{Path(pytest.__file__).parents[1]}/**/*.py"
    assert "pytest/__init__.py" in find_files(local.path, "data.sources.0.path").sizes
    with pytest.raises(LongredError, match=r"^data: must be a group"):
        load_recipe("demo", ["data=[1]"])
