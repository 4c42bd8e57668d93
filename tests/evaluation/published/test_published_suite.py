"""A suite of published benchmarks: checked early, frozen within the window, asked and scored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helmet_files as files
import pytest
import yaml

from longred.config import EvaluationConfig
from longred.errors import ConfigError, PreflightError
from longred.evaluation import published
from longred.evaluation.lm import TransformersLM
from longred.evaluation.own_tasks import run_own_task
from longred.evaluation.published.files import check_file, identities, local_file
from longred.evaluation.samples import freeze
from longred.evaluation.suites import SuiteTask, check_data_files, suite_of
from longred.evaluation.tasks import Task, read_tasks
from longred.models.load import load_model, load_tokenizer
from longred.stages.evaluation import freeze_samples
from longred.store.artifacts import Artifact, Store, read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WINDOW = 512


def walk(number: int, num_edges: int) -> dict[str, Any]:
    edges = "\n".join(f"n{j} -> n{j + 1}" for j in range(num_edges))
    return {
        "prompt": f"Graph {number}:\n{edges}\n\nOperation:\nFind the parents of node n1.\n",
        "answer_nodes": ["n0"],
        "problem_type": "parents",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a suite and its data: five short graphs, two longer, three too long."""
    rows = [walk(n, 2) for n in range(5)] + [walk(n, 14) for n in (5, 6)]
    rows += [walk(n, 2000) for n in (7, 8, 9)]
    (tmp_path / "walks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {
        "source": "published",
        "capacities": {
            "graphs": {
                "walks": {
                    "task": "graphwalks",
                    "metric": "graphwalks",
                    "overrides": {"extra_tokens": 1},
                    "data_files": {"test": "{folder}/walks.jsonl"},
                }
            }
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


def config_of(config: EvaluationConfig, folder: Path, **short: Any) -> EvaluationConfig:
    values = {"suite": str(folder / "own.yaml"), "data_folder": str(folder), **short}
    changes = {
        "short": config.short.model_copy(update=values),
        "ruler": config.ruler.model_copy(update={"tasks": []}),
    }
    return config.model_copy(update=changes)


def frozen(
    config: EvaluationConfig, model: Path, data: Path, folder: Path, name: str
) -> tuple[Task, Mapping[str, Any]]:
    place = folder / name
    place.mkdir()
    freeze(config, model, data, place, store=Store(folder / "store"))
    (task,) = read_tasks(place)
    return task, read_json(place / "index.json")["short"]["walks"]


def test_samples_fit_the_window_and_the_others_are_counted(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, folder: Path
) -> None:
    own = config_of(config, folder)
    task, entry = frozen(own, tiny_model_folder, data_folder, folder, "all")
    tokenizer = load_tokenizer(tiny_model_folder)
    sizes = [published.num_tokens(sample, tokenizer) for sample in task.read_samples()]
    assert len(sizes) == 7
    assert (entry["too_long"], entry["num_samples"], task.num_samples) == (3, 7, 7)
    assert task.max_tokens == entry["max_tokens"] == max(sizes) <= WINDOW
    assert (entry["metric"], entry["capacity"], task.source) == ("graphwalks", "graphs", "local")
    limited, _ = frozen(
        config_of(config, folder, limit=3), tiny_model_folder, data_folder, folder, "3"
    )
    assert limited.read_samples() == task.read_samples()[:3]


def test_a_count_that_changes_nothing_is_named(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    data_folder: Path,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, values, is_named in (
        ("default", {"num_samples": 200}, False),
        ("set", {"num_samples": 3}, True),
        ("limit", {"num_samples": 3, "limit": 3}, False),
    ):
        caplog.clear()
        frozen(config_of(config, folder, **values), tiny_model_folder, data_folder, folder, name)
        said = [m for m in caplog.messages if "evaluation.short.num_samples: changes" in m]
        assert len(said) == is_named, name
        assert all("set evaluation.short.limit" in message for message in said)


def test_files_are_known_by_their_content(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, folder: Path
) -> None:
    task, _ = frozen(config_of(config, folder), tiny_model_folder, data_folder, folder, "one")
    (folder / "moved").mkdir()
    (folder / "walks.jsonl").rename(folder / "moved" / "walks.jsonl")
    own = config_of(config, folder, data_folder=str(folder / "moved"))
    num_artifacts = len(list((folder / "store" / "artifacts").iterdir()))
    again, _ = frozen(own, tiny_model_folder, data_folder, folder, "two")
    assert again.sha256 == task.sha256
    assert len(list((folder / "store" / "artifacts").iterdir())) == num_artifacts
    with (folder / "moved" / "walks.jsonl").open("a") as file:
        file.write(json.dumps(walk(10, 3)) + "\n")
    assert frozen(own, tiny_model_folder, data_folder, folder, "three")[0].num_samples == 8


def test_the_stage_knows_files_by_their_content(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, folder: Path
) -> None:
    base = Artifact("base", "m0", str(tiny_model_folder))
    data = Artifact("data", "d0", str(data_folder))
    store = Store(folder / "store")
    (folder / "moved").mkdir()
    before = freeze_samples(config_of(config, folder), base, data, store=store)
    (folder / "walks.jsonl").rename(folder / "moved" / "walks.jsonl")
    own = config_of(config, folder, data_folder=str(folder / "moved"))
    assert freeze_samples(own, base, data, store=store).digest == before.digest
    with (folder / "moved" / "walks.jsonl").open("a") as file:
        file.write(json.dumps(walk(10, 3)) + "\n")
    assert freeze_samples(own, base, data, store=store).digest != before.digest


def test_answers_are_scored_in_both_forms(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, folder: Path
) -> None:
    task, _ = frozen(config_of(config, folder), tiny_model_folder, data_folder, folder, "all")
    model = load_model(tiny_model_folder)
    tokenizer = load_tokenizer(tiny_model_folder)
    lm = TransformersLM(model, tokenizer, max_tokens=WINDOW)
    said = [" [n0]"] * len(task.read_samples())
    lm.generate_until = lambda requests, **_: [said[r.doc_id] for r in requests]  # type: ignore[method-assign]
    answers = run_own_task(lm, task)
    assert [answer["score"] for answer in answers] == [100.0] * 7
    assert not any("unparsed" in answer for answer in answers)
    assert all(answer["prompt"].endswith("Final Answer:") for answer in answers)
    # In a chat the model must write the words itself.
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = TransformersLM(model, tokenizer, max_tokens=WINDOW, is_chat=True)
    chat.generate_until = lm.generate_until  # type: ignore[method-assign]
    assert [answer["unparsed"] for answer in run_own_task(chat, task)] == [True] * 7
    said = ["Because.\nFinal Answer: [n0, x, y]"] * len(said)
    assert [answer["score"] for answer in run_own_task(chat, task)] == [50.0] * 7


def test_groups_reach_the_answers(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    files.questions(tmp_path, with_ids=True)
    suite = {
        "source": "published",
        "capacities": {
            "rag": {
                "walks": {
                    "task": "helmet_nq",
                    "metric": "helmet_substring",
                    "limit": 2,
                    "num_fewshot": 1,
                    "data_files": {
                        "test": "{folder}/ids_test.jsonl",
                        "demos": "{folder}/ids_demos.jsonl",
                    },
                }
            }
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(suite))
    own = config_of(config, tmp_path).model_copy(update={"target_window": 1024})
    task, _ = frozen(own, tiny_model_folder, data_folder, tmp_path, "all")
    model = load_model(tiny_model_folder)
    lm = TransformersLM(model, load_tokenizer(tiny_model_folder), max_tokens=1024)
    samples, answers = task.read_samples(), run_own_task(lm, task)
    assert [answer["group"] for answer in answers] == [sample["group"] for sample in samples]
    assert len({answer["group"] for answer in answers}) == 2
    assert len(answers) == 4
    # Nothing but the budget or EOS ends an answer.
    assert {answer["ended"] for answer in answers} <= {"budget", "eos"}
    assert max(answer["output_tokens"] for answer in answers) <= 20
    assert [answer.get("unparsed", False) for answer in answers] == [
        not answer["got"].strip() for answer in answers
    ]


def test_a_chat_template_counts_too(tiny_model_folder: Path) -> None:
    plain, chat = load_tokenizer(tiny_model_folder), load_tokenizer(tiny_model_folder)
    chat.chat_template = "{% for m in messages %}A new turn: {{ m['content'] }}\n\n{% endfor %}"
    turns = [{"role": role, "content": "text"} for role in ("user", "assistant")] * 20
    sample = {"turns": turns, "input": "Again?", "max_new_tokens": 5, "outputs": ["x"]}
    text = "A new turn: text\n\n" * 40 + "A new turn: Again?\n\n"
    size = len(chat(text, add_special_tokens=False)["input_ids"]) + 5
    assert published.num_tokens(sample, chat) == size > published.num_tokens(sample, plain)


def test_nothing_that_fits_is_an_error_that_can_be_skipped(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, folder: Path
) -> None:
    rows = [walk(n, 2000) for n in range(2)]
    (folder / "walks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "out").mkdir()
    store = Store(folder / "store")
    own = config_of(config, folder)
    with pytest.raises(
        PreflightError, match=r"walks: no sample can be .*: 2 are longer than .*512"
    ):
        freeze(own, tiny_model_folder, data_folder, folder / "out", store=store)
    own = config_of(config, folder, on_missing="skip")
    freeze(own, tiny_model_folder, data_folder, folder / "out", store=store)
    entry = read_json(folder / "out" / "index.json")["short"]["walks"]
    assert "no sample can be asked" in entry["unavailable"]


def test_settings_that_no_row_suits_are_named(tokenizer: Any, folder: Path) -> None:
    files = {"test": str(folder / "walks.jsonl")}
    task = task_with(data_files=files, overrides={"problem_type": "BFS"})
    with pytest.raises(ConfigError, match=r"walks: no row .* settings \(problem_type: BFS\); corr"):
        published.freeze(task, tokenizer, window=WINDOW, limit=None, seed=0)


def task_with(**changes: Any) -> SuiteTask:
    values = {
        "name": "walks",
        "capacity": "graphs",
        "source": "published",
        "task": "graphwalks",
        "metric": "graphwalks",
        "data_files": {"test": f"hf://datasets/openai/graphwalks@{COMMIT}/a.parquet"},
    }
    return SuiteTask.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "graphwalk"}, r"task: graphwalk is no published .*did you mean graphwalks"),
        ({"metric": "acc"}, r"metric: is graphwalks for graphwalks, got acc"),
        ({"filter": "x"}, r"filter: graphwalks has none"),
        ({"num_fewshot": 2}, r"num_fewshot: graphwalks takes no examples"),
        ({"overrides": {"problem_typ": "bfs"}}, r"overrides\.problem_typ: .*mean problem_type"),
        ({"overrides": {"max_tokens": "8k"}}, r"overrides\.max_tokens: must be a whole number"),
        ({"overrides": {"min_tokens": True}}, r"overrides\.min_tokens: must be a whole number"),
        ({"overrides": {"problem_type": 1}}, r"overrides\.problem_type: must be text, got 1"),
        ({"data_files": {}}, r"data_files lacks `test: /path/to/file`"),
        ({"data_files": {"tests": "a.jsonl"}}, r"data_files\.tests: is unknown; did you mean test"),
        ({"data_files": {"test": "/none.jsonl"}}, r"data_files\.test: /none\.jsonl does not exist"),
        (
            {"data_files": {"test": "hf://datasets/openai/graphwalks@main/a.parquet"}},
            r"must be hf://datasets/owner/name@commit/file with the full commit hash",
        ),
        ({"task": "nolima", "metric": "contains"}, r"overrides\.length: is required"),
        (
            {"task": "helmet_nlu", "metric": "helmet_label"},
            r"num_fewshot: is required: the number of labelled texts",
        ),
    ],
)
def test_wrong_tasks_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        published.check_task(task_with(**changes))


def test_the_folder_must_be_given(config: EvaluationConfig, folder: Path) -> None:
    for suite in (str(folder / "own.yaml"), "helmet"):
        own = config_of(config, folder, data_folder=None, suite=suite)
        with pytest.raises(ConfigError, match=r"short\.data_folder: is required: .*yaml"):
            suite_of(own)
    (task,) = suite_of(config_of(config, folder))
    assert task.data_files == {"test": str(folder / "walks.jsonl")}
    check_data_files([task, task_with()])


def test_files_on_the_hub_are_fetched_at_their_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = f"hf://datasets/openai/mrcr@{COMMIT}/2needle/2needle_0.parquet"
    asked: list[Any] = []

    def fetch(name: str, file: str, **settings: str) -> str:
        asked.append((name, file, settings))
        return str(tmp_path / "found.parquet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(published.files.HUB, "probe", lambda: None)
    assert local_file("mrcr", "test", place) == tmp_path / "found.parquet"
    assert asked == [
        ("openai/mrcr", "2needle/2needle_0.parquet", {"repo_type": "dataset", "revision": COMMIT})
    ]
    check_file("mrcr", "test", place)
    other = place.replace(COMMIT, COMMIT[::-1])
    assert identities({"test": place}) != identities({"test": other})

    def fail(name: str, file: str, **settings: str) -> str:
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(PreflightError, match=r"mrcr: data_files\.test: hf://.* cannot be fetched"):
        local_file("mrcr", "test", place)
