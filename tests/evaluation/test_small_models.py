"""The suite small-models-local asks what lm-eval asks with the sets of the hub."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from longred.config.evaluation import EvaluationConfig
from longred.evaluation.lm_eval_catalog import leaf_settings
from longred.evaluation.lm_eval_tasks import build
from longred.evaluation.suites import load_suite, suite_of

ROWS: dict[str, list[dict[str, Any]]] = {
    "hf_datasets/hellaswag/none": [
        {
            "ind": 1,
            "activity_label": "Roof repair",
            "ctx_a": "A man sits on a roof.",
            "ctx_b": "he",
            "ctx": "A man sits on a roof. he",
            "endings": ["skis.", "starts pulling up roofing.", "sings.", "swims."],
            "label": "1",
        }
    ],
    "hf_datasets/piqa/plain_text": [
        {"goal": "Keep bread fresh", "sol1": "Wrap it.", "sol2": "Drown it.", "label": 0}
    ],
    "hf_datasets/ai2_arc/ARC-Easy": [
        {
            "id": "a",
            "question": "Which is a planet?",
            "choices": {"text": ["Mars", "Moon", "Sun"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        }
    ],
    "hf_datasets/winogrande/winogrande_xl": [
        {
            "sentence": "Ann beat Bea because _ was faster.",
            "option1": "Ann",
            "option2": "Bea",
            "answer": "1",
        }
    ],
}
LAMBADA = {"doc": {"query": "I gave the dog a", "choices": ["bone"]}, "idx": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place, rows in ROWS.items():
        path = tmp_path / place / "validation" / "data-00000-of-00001.arrow"
        path.parent.mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    path = tmp_path / "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps(LAMBADA).encode() + b"\n"))
    return tmp_path


def test_prompts_and_answers(folder: Path) -> None:
    config = EvaluationConfig.model_validate(
        {"short": {"suite": "small-models-local", "data_folder": str(folder)}}
    )
    found = {}
    for entry in suite_of(config):
        for name, settings in leaf_settings(entry, limit=None, allow_code=False).items():
            task = build(settings)
            task.build_all_requests()
            found[name] = [request.args for request in task.instances]
    assert found == {
        "lambada_openai": [("I gave the dog a", " bone")],
        "hellaswag": [
            ("Roof repair: A man sits on a roof. He", f" {ending}")
            for ending in ROWS["hf_datasets/hellaswag/none"][0]["endings"]
        ],
        "piqa": [
            ("Question: Keep bread fresh\nAnswer:", " Wrap it."),
            ("Question: Keep bread fresh\nAnswer:", " Drown it."),
        ],
        "arc_easy": [
            ("Question: Which is a planet?\nAnswer:", f" {name}")
            for name in ("Mars", "Moon", "Sun")
        ],
        "winogrande": [
            ("Ann beat Bea because Ann", " was faster."),
            ("Ann beat Bea because Bea", " was faster."),
        ],
    }


def test_both_suites_ask_the_same() -> None:
    for hub, local in zip(
        load_suite("small-models"), load_suite("small-models-local"), strict=True
    ):
        changed = {"data_files": {}, "overrides": {}}
        assert local.model_copy(update=changed) == hub
