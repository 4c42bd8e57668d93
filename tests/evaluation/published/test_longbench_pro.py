"""LongBench Pro: rows of its one file become prompts with their measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longred.errors import ConfigError
from longred.evaluation.metrics.published import MEASURES, longbench_pro
from longred.evaluation.prompts import plain_prompt, stops
from longred.evaluation.published.longbench_pro import MEASURE_OF

Read = Callable[..., list[dict[str, Any]]]


def row(number: int, **changes: Any) -> dict[str, Any]:
    values = {
        "id": f"sample-{number}",
        "context": f"Document {number}.",
        "language": ("English", "Chinese")[number % 2],
        "token_length": ("8k", "16k", "32k")[number % 3],
        "primary_task": "T6. Aggregation & Clustering",
        "secondary_task": (
            "T6.1 Large-Scale Document Clustering",
            "T6.2 Targeted Subset Cluster Identification",
            "T6.3 Global Frequency Analysis",
            "T1.1 Global Cohesive Retrieval",
        )[number % 4],
        "contextual_requirement": "Full",
        "question_nonthinking": f"Question {number}",
        "question_thinking": f"Think about {number}",
        "answer": ["one", "two"],
        "difficulty": "Easy",
    }
    return {**values, **changes}


def write(folder: Path, rows: list[Any]) -> dict[str, Path]:
    path = folder / "longbench_pro.json"
    path.write_text(json.dumps(rows, indent=1))
    return {"test": path}


def test_rows_become_prompts(read: Read, tmp_path: Path) -> None:
    rows = [row(n) for n in range(12)]
    samples = read("longbench_pro", write(tmp_path, rows), group="T6")
    assert sorted(sample["id"] for sample in samples) == sorted(
        r["id"] for n, r in enumerate(rows) if n % 4 != 3
    )
    measures = {"T6.1": "recall", "T6.2": "f1", "T6.3": "pairs"}
    by_id = {r["id"]: r for r in rows}
    for sample in samples:
        wanted = by_id[sample["id"]]
        assert sample["input"] == f"{wanted['context']}\n\n\n\n{wanted['question_nonthinking']}"
        assert sample["measure"] == measures[wanted["secondary_task"][:4]]
        mark = "[Answer]" if wanted["language"] == "English" else "[答案]"
        assert plain_prompt(sample) == f"{sample['input']}\n\n{mark}\n"
        assert (stops(sample, in_chat=False), stops(sample, in_chat=True)) == (["\n\n"], [])
        # What a base model writes is scored behind the mark.
        answer = sample["suffix"].lstrip() + "one\nTWO "
        assert longbench_pro(answer, sample) == (100.0, True)


def test_rows_can_be_selected(read: Read, tmp_path: Path) -> None:
    paths = write(tmp_path, [row(n) for n in range(12)])
    chosen = read("longbench_pro", paths, group="T6", language="Chinese", token_length="16k")
    assert [sample["id"] for sample in chosen] == ["sample-1"]
    assert {s["id"] for s in read("longbench_pro", paths, group="T1")} == {
        "sample-3", "sample-7", "sample-11"
    }  # fmt: skip


def test_all_tasks_but_summaries_have_a_known_measure() -> None:
    assert len(MEASURE_OF) == 23
    assert set(MEASURE_OF.values()) == set(MEASURES)


def test_bad_rows_are_refused(read: Read, tmp_path: Path) -> None:
    for bad, message in (
        (row(4, answer=[]), r"longbench_pro\.json: row 2: answer: "),
        (row(4, language="French"), r"row 2: language: "),
        (row(4, secondary_task="T6.9 New"), r"row 2: secondary_task: T6\.9 New is unknown"),
        ("text", r"row 2: is not a JSON object"),
    ):
        with pytest.raises(ConfigError, match=message):
            read("longbench_pro", write(tmp_path, [row(0), bad]), group="T6")
    path = tmp_path / "longbench_pro.json"
    path.write_text('[{"id": 1},\n{"id": }]')
    with pytest.raises(ConfigError, match=r"longbench_pro\.json:2: is not valid JSON"):
        read("longbench_pro", {"test": path}, group="T6")
    path.write_text('{"rows": []}')
    with pytest.raises(ConfigError, match=r"holds no list, and no list in `data`"):
        read("longbench_pro", {"test": path}, group="T6")
