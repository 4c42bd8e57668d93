"""Long-context suites of lm-eval, on small files in the format of their data sets."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from longred.errors import PreflightError
from longred.evaluation.lm_eval_catalog import leaf_settings
from longred.evaluation.lm_eval_tasks import freeze_leaf
from longred.evaluation.suites import SuiteTask, load_suite

FACTS = "Mary went to the garden. " * 40
CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "longbench_passage_retrieval_en": (
        "longbench",
        "test",
        {
            "context": FACTS,
            "question": "Someone walks outside.",
            "answers": ["Paragraph 3"],
            "all_classes": [],
        },
        "Someone walks outside.\n\nPlease enter the number",
    ),
    "longbench2_academic_single": (
        "longbench2",
        "train",
        {"context": FACTS, "question": "Where?", "choices": ["a", "b", "c", "d"], "answer": 1},
        "What is the correct answer to this question: Where?",
    ),
    "babilong_qa1": (
        "babilong",
        "qa1",
        {"input": FACTS, "question": "Where is Mary?", "target": "garden"},
        "Where is Mary?",
    ),
    "infinitebench_passkey": (
        "infinitebench",
        "passkey",
        {
            "id": 0,
            "context": FACTS,
            "input": "What is the pass key?",
            "answer": ["71432"],
            "options": [],
        },
        "What is the pass key?",
    ),
    "longproc_path_traversal_0.5k": (
        "longproc",
        "test",
        {
            "input_prompt": f"{FACTS}Find the route.",
            "reference_output": "From A, take a bus to B.",
            "metadata": "{}",
        },
        "Find the route.",
    ),
}


@pytest.mark.parametrize("task", CASES)
def test_a_local_file_takes_the_place_of_the_hub(task: str, tokenizer: Any, tmp_path: Path) -> None:
    """The metrics of LongBench need extra packages, which the error names."""
    suite, split, row, wanted = CASES[task]
    metrics = {entry.metric for entry in load_suite(suite)}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(2)))
    entry = SuiteTask.model_validate(
        {
            "name": task,
            "capacity": "long",
            "source": "lm-eval",
            "task": task,
            "metric": metrics.pop(),
            "data_files": {split: str(path)},
        }
    )
    if suite == "longproc":
        with pytest.raises(PreflightError, match=r"runs code that the model writes; set "):
            leaf_settings(entry, limit=None, allow_code=False)
    if suite == "longbench" and not all(map(find_spec, ("jieba", "fuzzywuzzy", "rouge"))):
        with pytest.raises(PreflightError, match=r"jieba fuzzywuzzy rouge.*lm_eval\[longbench\]"):
            leaf_settings(entry, limit=None, allow_code=False)
        return
    (settings,) = leaf_settings(entry, limit=None, allow_code=suite == "longproc").values()
    rows, found = freeze_leaf(settings, tokenizer)
    assert len(rows) == 2
    assert wanted in json.dumps(rows[0], ensure_ascii=False).replace("\\n", "\n")
    assert FACTS.strip() in json.dumps(rows[0])
    assert found["max_tokens"] > 100
