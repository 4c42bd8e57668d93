"""The suite `paper`: all of its 17 sets run from local files, and in the form of the hub."""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hub_rows import ANSWERS, ROWS, rows_of, splits_of

from longred.config import EvaluationConfig
from longred.evaluation.evaluate import evaluate
from longred.evaluation.lm_eval_catalog import leaf_settings
from longred.evaluation.lm_eval_finder import find_leaves
from longred.evaluation.lm_eval_tasks import freeze_leaf, run_lm_eval_task
from longred.evaluation.samples import freeze
from longred.evaluation.suites import load_suite
from longred.evaluation.tasks import read_index, read_tasks
from longred.store.artifacts import Store

HAS_MATH = all(map(find_spec, ("math_verify", "antlr4")))
PROSE = "pip install 'lm_eval[math]'"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_data(folder: Path, name: str) -> dict[str, str]:
    """Write one file for each subset and split of a set; return its `data_files`."""
    subsets = {values.get("dataset_name") for values in find_leaves(name).values()}
    name = next(known for known in ROWS if name.startswith(known))
    in_subsets = len(subsets) > 1
    for subset in subsets if in_subsets else {""}:
        for split in splits_of(name):
            path = folder / name / str(subset or "") / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            # In the hub's order of columns: a prompt of drop lists the names of some.
            lines = (json.dumps(row) + "\n" for row in rows_of(name, split))
            path.write_text("".join(lines))
    middle = "{subset}/" if in_subsets else ""
    return {split: f"{folder}/{name}/{middle}{split}.jsonl" for split in splits_of(name)}


def short_answers(name: str) -> dict[str, Any]:
    """Return a smaller budget for the tasks that generate: 1,024 tokens say no more here."""
    values = next(iter(find_leaves(name).values()))
    if "generation_kwargs" not in values:
        return {}
    return {"generation_kwargs": {**values["generation_kwargs"], "max_gen_toks": 4}}


def local_suite(folder: Path) -> Path:
    """Write the packaged suite with local data files for each of its tasks."""
    capacities: dict[str, dict[str, Any]] = {}
    for task in load_suite("paper"):
        values = task.model_dump(exclude={"name", "capacity"}, exclude_defaults=True)
        values |= {"data_files": write_data(folder, task.name)}
        values |= {"overrides": short_answers(task.name), "limit": 1}
        capacities.setdefault(task.capacity, {})[task.name] = values
    path = folder / "local.yaml"
    path.write_text(yaml.safe_dump({"capacities": capacities}))
    return path


class Oracle:
    """Answers every question right; otherwise as the model that it stands before."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = answers

    def __call__(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> str:
        name = next(n for n in self.answers if request.task_name.startswith(n))
        known, document = self.answers[name], request.doc
        if name == "gsm8k":
            return f"{known} {document['answer'].split()[-1]}."
        if name == "minerva_math":
            wanted = re.search(r"boxed\{(\d+)\}", document["solution"])
            assert wanted
            return f"{known} ${wanted[1]}$. I hope it is correct."
        return known


@pytest.mark.slow
def test_all_sets_run_from_local_files(
    config: EvaluationConfig,
    evaluated_model: Any,
    tiny_model_folder: Path,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"suite": str(local_suite(tmp_path)), "allow_code_execution": True}
    changes |= {"on_missing": "skip"}
    used = config.model_copy(
        update={
            "short": config.short.model_copy(update=changes),
            "ruler": config.ruler.model_copy(update={"tasks": [], "lengths": [4096]}),
            "target_window": 4096,
        }
    )
    samples, scores_folder, work = (tmp_path / name for name in ("samples", "scores", "work"))
    for folder in (samples, scores_folder, work):
        folder.mkdir()
    freeze(used, tiny_model_folder, data_folder, samples, store=Store(tmp_path))
    entries = read_index(samples)["short"]
    missing = {} if HAS_MATH else {"minerva_math": PROSE}
    assert {
        n: e["unavailable"][-len(PROSE) :] for n, e in entries.items() if "unavailable" in e
    } == (missing)
    sizes = {name: len(entry["parts"]) for name, entry in entries.items() if "parts" in entry}
    assert sizes == {
        **dict.fromkeys(ROWS.keys() - missing.keys(), 1),
        **{n: size for n, size in (("mmlu", 57), ("bbh", 27), ("minerva_math", 7)) if n in sizes},
    }

    # Two members of each group are enough for the model.
    index = json.loads((samples / "index.json").read_text())
    for entry in index["short"].values():
        if "parts" in entry:
            entry["parts"] = dict(list(entry["parts"].items())[:2])
    (samples / "index.json").write_text(json.dumps(index))
    model = evaluated_model(used, samples=samples)
    evaluate(model, scores_folder, work, store=Store(tmp_path))
    scores = json.loads((scores_folder / "scores.json").read_text())["short"]
    assert scores.keys() >= ROWS.keys() - missing.keys()
    for name in ROWS.keys() - missing.keys():
        assert 0 <= scores[name]["score"] <= 100, name
        assert scores[name]["num_samples"] == min(sizes[name], 2)
        assert scores[name]["interval"] is not None, name

    # The same frozen samples, and right answers: filters and metrics find them right.
    lm = model.lm
    monkeypatch.setattr(lm, "generate_until", Oracle(ANSWERS))
    for name in ANSWERS.keys() - missing.keys():
        task = next(task for task in read_tasks(samples) if task.name == name)
        result, answers = run_lm_eval_task(lm, task)
        assert result["score"] == 100.0, (name, answers)
        assert not any("unparsed" in answer for answer in answers)


def write_repository(folder: Path, name: str, subset: str | None) -> Path:
    """Write a local copy of a data set as the hub has it: Parquet files, and a card of subsets."""
    repository = folder / "hub" / name
    files = []
    for split in splits_of(name):
        path = repository / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows_of(name, split)).to_parquet(path)
        files.append({"split": split, "path": f"data/{split}-*"})
    card = {"configs": [{"config_name": subset or "default", "data_files": files}]}
    (repository / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return repository


@pytest.mark.slow
def test_all_sets_load_as_the_hub_has_them(tokenizer: Any, tmp_path: Path) -> None:
    """`datasets` loads a local copy of a repository as it loads the repository by its name."""
    for task in load_suite("paper"):
        if task.name == "minerva_math" and not HAS_MATH:
            continue
        leaf, values = next(iter(find_leaves(task.task).items()))
        repository = write_repository(tmp_path, task.name, values.get("dataset_name"))
        changes = {"task": leaf, "overrides": {"dataset_path": str(repository)}}
        entry = task.model_copy(update=changes)
        (settings,) = leaf_settings(entry, limit=None, allow_code=True).values()
        rows, _ = freeze_leaf(settings, tokenizer)
        local = task.model_copy(update={"task": leaf, "data_files": write_data(tmp_path, leaf)})
        (settings,) = leaf_settings(local, limit=None, allow_code=True).values()
        assert rows == freeze_leaf(settings, tokenizer)[0], task.name
        assert len(rows) == 2
