"""Sets of lm-eval that need more than a file: Python classes, packages, code, unread answers."""

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_rows import ROWS, SQUAD

from longred.errors import ConfigError, PreflightError
from longred.evaluation import lm_eval_catalog
from longred.evaluation.lm import TransformersLM
from longred.evaluation.lm_eval_catalog import leaf_settings, no_room
from longred.evaluation.lm_eval_tasks import _is_unparsed, build, freeze_leaf, run_lm_eval_task
from longred.evaluation.suites import SuiteTask
from longred.evaluation.tasks import Task, read_lines, write_lines
from longred.models.load import load_model
from longred.store.artifacts import sha256_file


def settings_of(task: str, *, allow_code: bool = False, **changes: Any) -> dict[str, Any]:
    values = {"name": task, "capacity": "c", "source": "lm-eval", "task": task, "metric": "f1"}
    entry = SuiteTask.model_validate({**values, **changes})
    return next(iter(leaf_settings(entry, limit=None, allow_code=allow_code).values()))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_class_reads_local_files(tokenizer: Any, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", SQUAD)
    rows, _ = freeze_leaf(settings_of("squadv2", data_files={"validation": validation}), tokenizer)
    assert [row["input"].count("Question:") for row in rows] == [1, 1]
    others = [{**SQUAD[0], "title": f"Lakes {number}"} for number in range(4)]
    files = {"validation": validation, "train": write(tmp_path / "train.jsonl", others)}
    shown = settings_of("squadv2", data_files=files, num_fewshot=2)
    rows, _ = freeze_leaf(shown, tokenizer)
    assert [row["input"].count("Question:") for row in rows] == [3, 3]
    assert "Answer:  The Danube\n\n" in rows[0]["input"]


def test_a_class_says_what_it_does_not_take(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SQUAD)
    with pytest.raises(
        ConfigError, match=r"^squadv2: data_files lacks the split validation, which"
    ):
        build(settings_of("squadv2", data_files={"test": path}))
    with pytest.raises(ConfigError, match=r"^squadv2: data_files lacks the split train, which the"):
        build(settings_of("squadv2", data_files={"validation": path}, num_fewshot=1))
    changed = settings_of(
        "squadv2", data_files={"validation": path}, overrides={"doc_to_text": "{{question}}"}
    )
    with pytest.raises(ConfigError, match=r"overrides\.doc_to_text: squadv2 is a Python class"):
        build(changed)
    with pytest.raises(ConfigError, match=r"the task has no subset that could take the place of"):
        settings_of("squadv2", data_files={"validation": "{subset}.jsonl"})


def test_advice_on_a_small_window_suits_the_task() -> None:
    names = {"capacity": "c", "source": "lm-eval", "metric": "m"}
    for task, advice in (
        ("squadv2", r"is a Python class .*: evaluate a model with a larger window, or leave"),
        ("gsm8k", r"set a smaller max_gen_toks in generation_kwargs under `overrides`"),
    ):
        error = no_room(SuiteTask.model_validate({"name": task, "task": task, **names}), task, 9, 8)
        assert re.search(rf"^{task}: answers take 9 tokens, .* in 8, .*{advice}", str(error))


def test_a_column_that_a_list_of_choices_lacks_is_named(tmp_path: Path) -> None:
    rows = [{"goal": "Open a jar", "sol1": "Turn it.", "solution2": "Eat it.", "label": 0}] * 2
    files = {"validation": write(tmp_path / "rows.jsonl", rows)}
    with pytest.raises(
        ConfigError, match=r"^piqa: .*doc_to_choice .*: 'sol2' is undefined; .* the columns goal, "
    ):
        build(settings_of("piqa", metric="acc", data_files=files))


def test_a_missing_package_is_said_before_any_data_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if all(map(find_spec, ("math_verify", "antlr4"))):
        find_leaves = lm_eval_catalog.find_leaves

        def lacking(*args: Any, resolve: bool = False) -> Any:
            if resolve:
                raise ModuleNotFoundError("No module named 'math_verify'", name="math_verify")
            return find_leaves(*args)

        monkeypatch.setattr(lm_eval_catalog, "find_leaves", lacking)
    with pytest.raises(
        PreflightError,
        match=r"^minerva_math: needs a package that is not installed \(.*'lm_eval\[math\]'$",
    ):
        settings_of("minerva_math", metric="exact_match")


def test_a_metric_of_the_hub_is_named_before_any_data_are_loaded() -> None:
    """meqsum fetches bleu as it is imported."""
    with pytest.raises(
        PreflightError, match=r"^meqsum: a metric of its code \(.*bleu.* connect to"
    ):
        settings_of("meqsum", metric="bleu")


def test_a_file_for_each_subset_of_a_group(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^mmlu \(mmlu_\w+\): data_files\.test: .*/none/\w+/test"
    ):
        settings_of(
            "mmlu", metric="acc", num_fewshot=0, data_files={"test": "/none/{subset}/test.jsonl"}
        )


@pytest.mark.medium
def test_a_metric_that_is_no_mean_has_no_score_per_sample(
    tiny_model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    files = {"test": write(tmp_path / "rows.jsonl", ROWS["lambada_openai"])}
    model = load_model(tiny_model_folder)
    lm = TransformersLM(model, tokenizer, max_tokens=512)
    found = {}
    for metric in ("perplexity", "acc"):
        settings = settings_of("lambada_openai", metric=metric, scale=1.0, data_files=files)
        rows, entry = freeze_leaf(settings, tokenizer)
        path = tmp_path / f"{metric}.jsonl"
        write_lines(path, rows)
        names = {"kind": "short", "name": metric, "source": "lm-eval", "metric": metric}
        numbers = {"chance": 0.0, "num_samples": 2, "max_tokens": entry["max_tokens"]}
        task = Task(**names, **numbers, path=path, sha256=sha256_file(path), settings=settings)
        found[metric] = run_lm_eval_task(lm, task)
    requests = [SimpleNamespace(args=(row["input"], " one")) for row in read_lines(path)]
    likelihoods = [value for value, _ in lm.loglikelihood(requests)]
    wanted = math.exp(-sum(likelihoods) / len(likelihoods))
    assert found["perplexity"].scores["score"] == pytest.approx(wanted, rel=1e-6)
    assert found["perplexity"].scores["interval"] is None
    assert list(found["perplexity"].answers) == []
    assert [answer["score"] for answer in found["acc"].answers] == [0.0, 0.0]


def unparsed(task: Any, chosen: str, found: Any, *, is_generated: bool = True) -> bool:
    second: Any = {"until": []} if is_generated else " yes"
    row = {"arguments": [["prompt", second]], "filter": chosen, "filtered_resps": [found]}
    return _is_unparsed(task, row)


def test_an_answer_that_holds_nothing_to_read_is_marked(tmp_path: Path) -> None:
    files = {"test": write(tmp_path / "rows.jsonl", ROWS["gsm8k"])}
    settings = settings_of("gsm8k", metric="exact_match", num_fewshot=0, data_files=files)
    task = build(settings)
    instances = [
        SimpleNamespace(resps=[text], doc={}, filtered_resps={}) for text in (" 7.", "?", "")
    ]
    for each in task._filters:
        each.apply(instances)
    for chosen, wanted in (("flexible-extract", [False, True, True]), ("strict-match", [True] * 3)):
        found = [one.filtered_resps[chosen] for one in instances]
        assert [unparsed(task, chosen, each) for each in found] == wanted
    assert unparsed(task, "none", [""])
    assert not unparsed(task, "none", ["def f(): pass"])
    assert not unparsed(task, "flexible-extract", (-1.0, False), is_generated=False)
