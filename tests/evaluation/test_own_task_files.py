"""Task files of the user: by path or in a folder, with functions, groups and tags."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from longred.config import EvaluationConfig
from longred.errors import ConfigError, MismatchError, PreflightError
from longred.evaluation.lm import TransformersLM
from longred.evaluation.lm_eval_catalog import leaf_settings
from longred.evaluation.lm_eval_tasks import build, freeze_leaf, run_lm_eval_task
from longred.evaluation.own_task_files import files_of, own_digest, own_digests
from longred.evaluation.samples import freeze
from longred.evaluation.suites import SuiteTask, check_data_files, load_suite
from longred.evaluation.tasks import Task, read_tasks
from longred.models.load import load_model
from longred.store.artifacts import Store

HELPERS = """
def double(documents):
    return documents.map(lambda row: {"question": row["question"] * 2})

def score(document, results):
    return {"length": len(results[0]), "is_long": float(len(results[0]) > 2)}

def target(document):
    return document["answer"].upper()
"""

TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [
        {"metric": "length", "aggregation": "mean", "higher_is_better": True},
        {"metric": "is_long", "aggregation": "mean", "higher_is_better": True},
    ],
}


def write_task(folder: Path, name: str, **changes: Any) -> Path:
    """Write a task with functions of `helpers.py`, which lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.jsonl"
    rows = [{"question": f"{word}? ", "answer": word} for word in ("yes", "no", "red")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "helpers.py").write_text(HELPERS)
    values = {**TASK, "task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    functions = "".join(
        f"{key}: !function helpers.{function}\n"
        for key, function in (
            ("process_docs", "double"),
            ("process_results", "score"),
            ("doc_to_target", "target"),
        )
    )
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}) + functions)
    return path


def entry(**values: Any) -> SuiteTask:
    return SuiteTask.model_validate(
        {"name": "mine", "capacity": "own", "source": "lm-eval", "metric": "is_long", **values}
    )


def settings_of(**values: Any) -> dict[str, dict[str, Any]]:
    return leaf_settings(entry(**values), limit=None, allow_code=False)


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {"chance": 0.0, "num_samples": 1, "max_tokens": 9, "sha256": "0"}
    names = {"kind": "short", "name": "mine", "source": "lm-eval", "metric": "is_long"}
    return Task(**names, **numbers, path=Path("x"), settings=settings).identity()


@pytest.mark.medium
def test_a_task_file_runs_with_its_functions(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    tokenizer: Any,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    path = write_task(tmp_path / "mine", "words")
    suite = tmp_path / "suite.yaml"
    task = {"task": str(path), "metric": "length", "scale": 1.0}
    suite.write_text(json.dumps({"source": "lm-eval", "capacities": {"own": {"mine": task}}}))
    used = config.model_copy(
        update={"short": config.short.model_copy(update={"suite": str(suite)})}
    )
    folder = tmp_path / "samples"
    folder.mkdir()
    freeze(used, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    frozen = next(task for task in read_tasks(folder) if task.name == "mine")
    assert [row["input"] for row in frozen.read_samples()] == [
        "yes? yes? ",
        "no? no? ",
        "red? red? ",
    ]
    model = load_model(tiny_model_folder)
    lm = TransformersLM(model, tokenizer, max_tokens=512)
    result, answers = run_lm_eval_task(lm, frozen)
    assert [answer["score"] for answer in answers] == [len(answer["got"]) for answer in answers]
    assert result["score"] == pytest.approx(sum(len(a["got"]) for a in answers) / 3)
    assert [answer["expected"] for answer in answers] == ["YES", "NO", "RED"]

    # Other answers or metric code with the same prompts give other scores under the old name.
    rows = path.parent / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace('"answer": "red"', '"answer": "blue"'))
    with pytest.raises(MismatchError, match=r"^mine: its local data changed since the samples"):
        run_lm_eval_task(lm, frozen)
    rows.write_text(before)

    helpers = path.parent / "helpers.py"
    helpers.write_text(HELPERS.replace("len(results[0]) > 2", 'document["size"]'))
    (values,) = leaf_settings(load_suite(str(suite))[0], limit=None, allow_code=False).values()
    with pytest.raises(ConfigError, match=r"^mine: .*helpers\.py:6: fails on an .*\(KeyError: 's"):
        run_lm_eval_task(lm, replace(frozen, settings=values))
    helpers.write_text(HELPERS.replace("> 2", "> 3"))
    with pytest.raises(MismatchError, match=r"words\.yaml or its Python files were changed"):
        run_lm_eval_task(lm, frozen)


@pytest.mark.medium
def test_a_folder_adds_tasks_groups_and_tags(tokenizer: Any, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    write_task(folder, "one", tag="few")
    write_task(folder, "two", tag=["few", "all"])
    write_task(folder, "third")
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    inner = {**TASK, **data, "task": "four", "doc_to_target": "answer", "metric_list": metrics}
    members = ["one", {"task": "two", "description": "Say. "}, inner]
    members.append({"group": "rest", "task": ["third"], "description": "Tell. "})
    group = {"group": "many", "description": "Answer. ", "task": members}
    (folder / "many.yaml").write_text(yaml.safe_dump(group))
    (folder / "other.yaml").write_text("services: {web: {image: nginx}}\n")
    path = {"include_path": str(folder)}
    assert list(settings_of(task="one", **path)) == ["one"]
    assert list(settings_of(task="few", **path)) == ["one", "two"]
    found = settings_of(task="many", **path)
    assert settings_of(task=str(folder / "many.yaml")).keys() == found.keys()

    theirs = TaskManager(include_defaults=False, include_path=str(folder)).load(["many"])["tasks"]
    assert {leaf: task.config.description for leaf, task in theirs.items()} == {
        "one": "Answer. ",
        "two": "Say. ",
        "many::four": "Answer. ",
        "third": "Answer. ",
    }
    assert found.keys() == theirs.keys()
    for leaf, each in found.items():
        used = {**each, "metric": "exact_match"} if leaf == "many::four" else each
        rows, _ = freeze_leaf(used, tokenizer)
        theirs[leaf].build_all_requests()
        assert [row["input"] for row in rows] == [one.args[0] for one in theirs[leaf].instances]


def test_names_of_lm_eval_remain(tmp_path: Path) -> None:
    write_task(tmp_path, "one")
    data = {"validation": str(tmp_path / "rows.jsonl")}
    (found,) = settings_of(task="piqa", include_path=str(tmp_path), data_files=data).values()
    assert "origin" not in found
    assert "code_sha256" not in found
    write_task(tmp_path, "piqa")
    write_task(tmp_path / "a", "red")
    write_task(tmp_path / "b", "red")
    with pytest.raises(ConfigError, match=r"a/red\.yaml and .*b/red\.yaml: both are named red; r"):
        settings_of(task="red", include_path=str(tmp_path))
    (found,) = settings_of(task="piqa", include_path=str(tmp_path)).values()
    assert found["origin"]["include_path"] == str(tmp_path)


def test_content_counts_and_not_the_place(tmp_path: Path) -> None:
    def read(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
        path = folder / "words.yaml"
        (found,) = settings_of(
            task=str(path), data_files={"test": str(folder / "rows.jsonl")}
        ).values()
        return identity(found), own_digests(entry(task=str(path)))

    for place in ("a", "b"):
        path = write_task(tmp_path / place, "words", include="base.yaml", dataset_kwargs={})
        (tmp_path / place / "base.yaml").write_text("description: Read.\n")
        assert [each.name for each in files_of(path)] == ["words.yaml", "helpers.py", "base.yaml"]
    assert read(tmp_path / "a") == read(tmp_path / "b")
    for name, text in (("helpers.py", f"{HELPERS}\n"), ("base.yaml", "description: Look.\n")):
        before = read(tmp_path / "b")
        (tmp_path / "b" / name).write_text(text)
        after = read(tmp_path / "b")
        assert all(one != other for one, other in zip(before, after, strict=True)), name


@pytest.mark.parametrize("function", ["my-code.score", '"my-code.score"', "sub.my-code.score"])
def test_functions_count_in_files_of_any_name(tmp_path: Path, function: str) -> None:
    helper = tmp_path / ("sub/my-code.py" if "sub" in function else "my-code.py")
    helper.parent.mkdir(exist_ok=True)
    helper.write_text(HELPERS)
    path = tmp_path / "words.yaml"
    values = f"task: words\nmetric_list: [{{metric: !function {function}, aggregation: mean}}]\n"
    path.write_text(values)
    assert helper in files_of(path)


def test_groups_within_groups_count_from_any_folder(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "words")
    inner, outer = tmp_path / "inner" / "inner.yaml", tmp_path / "outer" / "outer.yaml"
    for path, values in (
        (inner, {"group": "inner", "task": [{"task": "words", "doc_to_target": "{{answer}}"}]}),
        (outer, {"group": "outer", "task": ["inner"]}),
    ):
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(values))

    def read() -> dict[str, Any]:
        (found,) = settings_of(task="outer", include_path=str(tmp_path)).values()
        return identity(found)

    before = read()
    inner.write_text(inner.read_text().replace("{{answer}}", "{{question}}"))
    assert read() != before


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / split / "rows.jsonl" for split in ("train", "test")]
    for path in files:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    before = own_digest(files)
    assert own_digest(files[::-1]) == before
    files[0].write_text("test")
    files[1].write_text("train")
    assert own_digest(files) != before


def test_local_data_that_a_task_names_itself_count(tmp_path: Path) -> None:
    path = write_task(tmp_path, "words")

    def read() -> tuple[dict[str, Any], dict[str, str]]:
        (found,) = settings_of(task=str(path)).values()
        return identity(found), own_digests(entry(task=str(path)))

    before = read()
    (tmp_path / "rows.jsonl").write_text('{"question": "new? ", "answer": "yes"}\n')
    assert all(one != other for one, other in zip(before, read(), strict=True))


@pytest.mark.parametrize("by_folder", [False, True])
def test_included_templates_and_members_of_groups_count(tmp_path: Path, by_folder: bool) -> None:
    path = write_task(tmp_path, "words", include="_template_yaml", dataset_kwargs={})
    rows, others = tmp_path / "rows.jsonl", tmp_path / "others.jsonl"
    others.write_text(rows.read_text())
    template = tmp_path / "_template_yaml"
    template.write_text(yaml.safe_dump({"dataset_kwargs": {"data_files": {"test": str(rows)}}}))
    member = {"task": "words", "dataset_kwargs": {"data_files": {"test": str(others)}}}
    group = tmp_path / "group.yaml"
    group.write_text(yaml.safe_dump({"group": "group", "task": [member]}))
    place = {"include_path": str(tmp_path)} if by_folder else {}

    def read(task: Path) -> dict[str, str]:
        return own_digests(entry(task=task.stem if by_folder else str(task), **place))

    for task, file, text in (
        (path, template, "description: Read.\n"),
        (path, rows, '{"question": "new", "answer": "row"}\n'),
        (group, others, '{"question": "new", "answer": "row"}\n'),
    ):
        before = read(task)
        file.write_text(file.read_text() + text)
        assert read(task) != before, file.name


def test_data_that_are_not_there_are_looked_for_in_the_task_file(tmp_path: Path) -> None:
    path = write_task(tmp_path, "words")
    (tmp_path / "rows.jsonl").unlink()
    (found,) = settings_of(task=str(path)).values()
    with pytest.raises(
        PreflightError, match=r"see dataset_path and dataset_kwargs in .*words\.yaml"
    ):
        build(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", r"mine\.yaml: cannot be read \("),
        ("- a\n", r"mine\.yaml: cannot be read \(Expected YAML dict"),
        ("dataset_path: json\n", r"mine\.yaml: is no task of lm-eval: it needs `task:`"),
        ("task: words\ninclude: none.yaml\n", r"mine\.yaml: cannot be read \(.*none\.yaml"),
        ("group: few\ntask: [wrods, words]\n", r"no task or group wrods .*; did you mean words"),
        ("group: few\ntask: [3]\n", r"mine\.yaml: few: its tasks are names, or hold `task:`"),
        (
            "task: a\ndoc_to_text: !function helpers.none\n",
            r"cannot be read \(.*no function 'none'",
        ),
        ("task: a\ndoc_to_text: !function broken.f\n", r"Python code cannot be imported: .*syntax"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_task(tmp_path, "words")
    (tmp_path / "broken.py").write_text("def f(:\n")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        settings_of(task=str(path))


def test_a_missing_package_or_file_is_said_first(tmp_path: Path) -> None:
    path = write_task(tmp_path, "words")
    (tmp_path / "helpers.py").write_text(f"import no_such_package\n{HELPERS}")
    with pytest.raises(
        PreflightError, match=r"mine: needs .*'no_such_package'\); install the package that has it$"
    ):
        settings_of(task=str(path))
    (tmp_path / "others.py").write_text("")
    for statement in ("import others", "from .others import x"):
        (tmp_path / "helpers.py").write_text(f"{statement}\n{HELPERS}")
        with pytest.raises(ConfigError, match=r"mine: a Python file of the task imports another"):
            settings_of(task=str(path))
    for values, message in (
        (
            {"task": "nowhere/a.yaml"},
            r"^mine: task: nowhere/a\.yaml does not exist \(relative paths",
        ),
        (
            {"include_path": "nowhere"},
            r"^mine: include_path: nowhere is no folder \(relative paths",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_data_files([entry(**values)])


def test_a_metric_of_nobody_is_refused_before_anything_is_asked(
    tokenizer: Any, tmp_path: Path
) -> None:
    metrics = [{"metric": "no_such_metric", "aggregation": "mean", "higher_is_better": True}]
    path = write_task(tmp_path, "words", metric_list=metrics)
    path.write_text(path.read_text().replace("process_results: !function helpers.score\n", ""))
    (found,) = settings_of(task=str(path), metric="no_such_metric").values()
    with pytest.raises(
        PreflightError, match="mine: its metric no_such_metric is none of lm-eval's"
    ):
        freeze_leaf(found, tokenizer)


def test_a_suite_may_name_the_folder_once(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"source: lm-eval\ninclude_path: {tmp_path}\n"
        "capacities: {own: {one: {metric: is_long}, two: {metric: is_long, include_path: other}}}\n"
    )
    assert [task.include_path for task in load_suite(str(suite))] == [str(tmp_path), "other"]
