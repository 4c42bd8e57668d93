"""Suites: every task of a packaged suite exists, with its metric and filter."""

from pathlib import Path

import pytest

from longred.errors import ConfigError
from longred.evaluation import short
from longred.evaluation.lm_eval_catalog import find_leaves, task_file
from longred.evaluation.published import BENCHMARKS, settings_of
from longred.evaluation.published.reading import split_of
from longred.evaluation.suites import RESERVED, SuiteTask, check_data_files, load_suite, suite_names

# Their metrics are in code, not in YAML.
OWN_METRICS = {"squadv2", "humaneval", "mbpp"}


@pytest.mark.parametrize("name", suite_names())
def test_packaged_suites_are_whole(name: str) -> None:
    for task in load_suite(name):
        assert task.capacity not in RESERVED
        if task.source == "local":
            assert task.task in short.TASKS
            assert task.metric == short.METRICS[task.task]
            continue
        if task.source == "published":
            settings_of(task)
            benchmark = BENCHMARKS[task.task]
            splits = {split_of(name) for name in task.data_files}
            assert set(benchmark.splits) <= splits <= {*benchmark.splits, *benchmark.optional}
            continue
        for leaf, values in find_leaves(task.task).items():
            filters = [f["name"] for f in values.get("filter_list") or []] or ["none"]
            assert (task.filter or filters[0]) in filters
            assert task.filter is not None or len(filters) == 1, leaf
            if task.task not in OWN_METRICS:
                assert task.metric in [m["metric"] for m in values["metric_list"]], leaf


def test_the_paper_has_seventeen_data_sets_in_five_capacities() -> None:
    suite = load_suite("paper")
    assert len(suite) == 17
    capacities = list(dict.fromkeys(task.capacity for task in suite))
    assert capacities == ["general", "coding", "math", "reading", "common"]


def test_groups_stand_for_their_tasks() -> None:
    sizes = {name: len(find_leaves(name)) for name in ("mmlu", "bbh", "minerva_math", "gsm8k")}
    assert sizes == {"mmlu": 57, "bbh": 27, "minerva_math": 7, "gsm8k": 1}
    assert task_file("social_iqa").parent.name == "siqa"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"short\.suite: papr is unknown; did you mean paper"):
        load_suite("papr")
    with pytest.raises(ConfigError, match=r"capacities: maths is not in .*did you mean math"):
        load_suite("paper", capacities=["maths"])
    with pytest.raises(ConfigError, match=r"tasks: gsm8 is not in .*did you mean gsm8k"):
        load_suite("paper", tasks=["gsm8"])
    with pytest.raises(
        ConfigError, match=r"no task or group helaswag \(name the tasks of .*mean .*hellaswag"
    ):
        find_leaves("helaswag")


def test_a_part_of_a_suite_can_be_asked() -> None:
    assert [t.name for t in load_suite("demo", capacities=["reading"])] == ["cloze", "key_recall"]
    assert [t.name for t in load_suite("demo", tasks=["brackets"])] == ["brackets"]
    with pytest.raises(ConfigError, match=r"tasks: cloze of demo\.yaml are not in .*\(coding\)"):
        load_suite("demo", capacities=["coding"], tasks=["cloze"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("tasks: {}", "holds `capacities:`"),
        ("capacities: {math: {}}", r"capacities\.math: holds no task"),
        ("capacities: {math: {a: {metric: x, shots: 3}}}", r"math\.a\.shots: unknown key"),
        (
            "capacities: {math: {a: {metric: x, limit: 0}}}",
            r"math\.a\.limit: must be a whole number of 1 or more or null, got 0$",
        ),
        ("capacities: {math: {a: {}}}", r"math\.a\.metric: is required: text$"),
        ("capacities: {math: {a: {metric: 2001-99-99}}}", "is not valid YAML"),
        ("capacities: {short: {a: {metric: x}}}", "short is the name of an average"),
        (
            "capacities: {x: {a: {metric: m, task: a.yaml}}}",
            r"x\.a\.task: a\.yaml is a task of lm-",
        ),
        (
            "capacities: {x: {gsm8k: {metric: exact_match}}}",
            r"x\.gsm8k\.task: gsm8k is no local task \(.*; for one of lm-eval set source: lm-eval",
        ),
        (
            "capacities: {x: {cloze: {metric: exact_match}}}",
            r"x\.cloze\.metric: is choice for cloze, got exact_match$",
        ),
        (
            "capacities: {x: {cloze: {metric: choice, limit: 5}}}",
            r"x\.cloze\.limit: changes nothing in a local task, .*num_samples",
        ),
        (
            "{source: lm-eval, capacities: {x: {a: {metric: m}}, y: {a: {metric: m}}}}",
            "a is there twice",
        ),
    ],
)
def test_a_suite_of_ones_own_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}", r"^words: data_files\.test: /.* is a folder; name one file \(patterns with \* are"),
        ("{}/{{subset}}", r"data_files\.test: .*/\{subset\} is a folder; name one file"),
        ("{}/a/none.jsonl", r"none\.jsonl does not exist$"),
        (
            "{}/{{subject}}.jsonl",
            r"does not exist; \{subject\} is not replaced, only \{subset\} is$",
        ),
    ],
)
def test_a_path_of_data_that_is_no_file_is_explained(
    tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "a").mkdir()
    values = {"capacity": "c", "source": "lm-eval", "metric": "m", "task": "words"}
    files = {"test": path.format(tmp_path)}
    entry = SuiteTask.model_validate({"name": "words", "data_files": files, **values})
    with pytest.raises(ConfigError, match=message):
        check_data_files([entry])
