"""The examples of the guide: its suites and task files freeze as they stand there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hub_rows import rows_of

from longred.evaluation.lm_eval_catalog import leaf_settings
from longred.evaluation.lm_eval_finder import find_leaves
from longred.evaluation.lm_eval_tasks import freeze_leaf
from longred.evaluation.suites import check_data_files, load_suite

GUIDE = Path(__file__).parents[2] / "longred" / "evaluation" / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(heading: str, language: str) -> list[str]:
    """Return the blocks of a language below a heading of the guide."""
    text = GUIDE.read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [block for kind, block in FENCE.findall(section) if kind == language]


def frozen(suite: str, tokenizer: Any, leaves: int = 99) -> dict[str, list[dict[str, Any]]]:
    tasks = load_suite(suite)
    check_data_files(tasks)
    found: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        settings = list(leaf_settings(task, limit=None, allow_code=False).values())[:leaves]
        for each in settings:
            found[task.name] = freeze_leaf(each, tokenizer)[0]
    return found


@pytest.mark.medium
def test_the_suites_freeze_as_they_are_pasted(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (rows,) = blocks("Example: your own benchmark", "json")
    (suite,) = blocks("Example: your own benchmark", "yaml")
    Path("brackets.jsonl").write_text(rows)
    Path("brackets.yaml").write_text(suite)
    assert len(frozen("brackets.yaml", tokenizer)["next_words"]) == 2

    (rows,) = blocks("Example: your own task of lm-eval", "json")
    (code,) = blocks("Example: your own task of lm-eval", "python")
    task, suite = blocks("Example: your own task of lm-eval", "yaml")
    for name, text in (("words.jsonl", rows), ("words.py", code), ("words.yaml", task)):
        Path(name).write_text(text)
    Path("own.yaml").write_text(suite)
    prompts = [row["input"] for row in frozen("own.yaml", tokenizer)["words"]]
    assert prompts == [f"The word {word} backwards is" for word in ("stressed", "drawer")]


@pytest.mark.medium
def test_the_air_gapped_suite_freezes(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (suite,) = blocks("Example: without a network", "yaml")
    Path("air-gapped.yaml").write_text(suite)
    subsets = [values["dataset_name"] for values in find_leaves("mmlu").values()]
    files = {"gsm8k/test": ("gsm8k", "test"), "squad_v2/validation": ("squadv2", "validation")}
    for subset in subsets:
        files |= {f"mmlu/{subset}/{split}": ("mmlu", split) for split in ("test", "dev")}
    for place, (name, split) in files.items():
        path = Path("data") / f"{place}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name, split)))
    found = frozen("air-gapped.yaml", tokenizer, leaves=2)
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(
        ("mmlu", "gsm8k", "squadv2"), 2
    )
