"""A seed always gives the same samples; a change that alters them must raise the version."""

import hashlib
import json
from typing import Any

import pytest
from oracles import V1_TASKS
from transformers import PreTrainedTokenizerFast

from longred.config.evaluation import MMLU_TASKS
from longred.demo import model_path
from longred.evaluation import ruler
from longred.evaluation.ruler.questions import own_questions

DIGESTS = {
    ("niah_single_1", 1_024, "current"): "bc5ee7217c1cf9c8",
    ("niah_single_1", 8_192, "current"): "17519e7902584856",
    ("niah_single_2", 1_024, "current"): "ac5dddc7f6c191f6",
    ("niah_single_2", 8_192, "current"): "eb5e7368f0b61e02",
    ("niah_single_3", 1_024, "current"): "de033f340b7e87c6",
    ("niah_single_3", 8_192, "current"): "52510ab78529c0de",
    ("niah_multikey_1", 1_024, "current"): "3870819f82060b4c",
    ("niah_multikey_1", 8_192, "current"): "f5a49ede40358ad6",
    ("niah_multikey_2", 1_024, "current"): "4096010c635f93b5",
    ("niah_multikey_2", 8_192, "current"): "a88387d76078bc9a",
    ("niah_multikey_3", 1_024, "current"): "7a04d9cb9fd9623d",
    ("niah_multikey_3", 8_192, "current"): "635f3fddd1eac40b",
    ("niah_multivalue", 1_024, "current"): "6049b1b3887d7c14",
    ("niah_multivalue", 8_192, "current"): "9e6a7a73ae809426",
    ("niah_multiquery", 1_024, "current"): "36d2c5d6c7140be5",
    ("niah_multiquery", 8_192, "current"): "58bf862a07c64b60",
    ("vt", 1_024, "current"): "fd4be048a1c6df8f",
    ("vt", 8_192, "current"): "bf4f1e2d9946785e",
    ("cwe", 1_024, "current"): "bb53220484606067",
    ("cwe", 8_192, "current"): "8eb1a3cb8f3d09df",
    ("fwe", 1_024, "current"): "406a1d85cf30c8a1",
    ("fwe", 8_192, "current"): "0a2f8e40c8fdffbf",
    ("qa_1", 1_024, "current"): "11d324be29237805",
    ("qa_1", 8_192, "current"): "f8c08061a3c615d5",
    ("qa_2", 1_024, "current"): "21e2f8df094c4791",
    ("qa_2", 8_192, "current"): "7af9c48c32ab1d2f",
    ("kv_retrieval", 1_024, "current"): "2f579544d24df08d",
    ("kv_retrieval", 8_192, "current"): "fe54985adb0f1f82",
    ("vt", 8_192, "paper"): "e215788879e3f1ed",
    ("cwe", 8_192, "paper"): "7e065ef4d4e1b237",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(model_path())


@pytest.mark.parametrize(("task", "length", "revision"), list(DIGESTS))
def test_samples_of_a_version(tokenizer: Any, task: str, length: int, revision: Any) -> None:
    samples = ruler.generate(
        task,
        length=length,
        num_samples=3,
        tokenizer=tokenizer,
        seed=7,
        haystack=own_questions("squad").documents,
        revision=revision,
    )
    found = hashlib.sha256(json.dumps(samples, sort_keys=True).encode()).hexdigest()[:16]
    assert found == DIGESTS[task, length, revision]


def test_every_task_is_frozen() -> None:
    assert {task for task, _, _ in DIGESTS} == set(V1_TASKS)
    versions = {name: task.version for name, task in ruler.TASKS.items()}
    assert {name for name, version in versions.items() if version == 4} == {
        "cwe",
        "qa_1",
        "qa_2",
        "kv_retrieval",
    }
    assert {name for name, version in versions.items() if version > 4} == {*MMLU_TASKS}
    assert ruler.generator_version(["vt", "niah_single_1"]) == ruler.generator_version([]) == 3
    assert ruler.generator_version(["vt", "qa_1"]) == 4
    assert ruler.generator_version(["vtt"]) == 3
