"""MRCR and GraphWalks: rows in the form of the hub's files become prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longred.errors import ConfigError
from longred.evaluation.counting import count_tokens
from longred.evaluation.prompts import messages, plain_prompt, stops

Read = Callable[..., list[dict[str, Any]]]

TURNS = [
    {"role": "user", "content": "Write a poem about tapirs"},
    {"role": "assistant", "content": "A tapir."},
    {"role": "user", "content": "Prepend Xy1 to the 1st poem."},
]


def conversation(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "prompt": json.dumps(TURNS),
        "answer": f"Xy1A tapir {number}.",
        "random_string_to_prepend": "Xy1",
        "n_needles": 2 + 2 * (number % 2),
        "desired_msg_index": 1,
        "total_messages": 3,
        "n_chars": 60,
    }
    return {**row, **changes}


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_a_conversation_is_a_chat_or_names_its_speakers(
    read: Read, tokenizer: Any, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "2needle_0.parquet", [conversation(0)])
    (sample,) = read("mrcr", {"test_1": path})
    assert messages(sample) == TURNS
    assert plain_prompt(sample) == (
        "User: Write a poem about tapirs\n\nAssistant: A tapir.\n\n"
        "User: Prepend Xy1 to the 1st poem.\n\nAssistant:"
    )
    assert stops(sample, in_chat=False) == ["\n\nUser:"]
    assert stops(sample, in_chat=True) == []
    assert (sample["outputs"], sample["random_prefix"]) == (["Xy1A tapir 0."], "Xy1")
    size = count_tokens(tokenizer, "Xy1A tapir 0.") + 256
    assert sample["max_new_tokens"] % 256 == 0
    assert size <= sample["max_new_tokens"] < size + 256


def test_files_of_a_split_are_one_table(read: Read, tmp_path: Path) -> None:
    paths = {
        f"test_{part}": parquet(
            tmp_path / f"{part}.parquet", [conversation(n) for n in range(5 * part, 5 * part + 5)]
        )
        for part in (1, 2)
    }
    answers = [sample["outputs"][0] for sample in read("mrcr", paths, seed=3)]
    assert sorted(answers) == sorted(conversation(n)["answer"] for n in range(5, 15))
    assert answers == [sample["outputs"][0] for sample in read("mrcr", paths, seed=3)]
    assert answers != [sample["outputs"][0] for sample in read("mrcr", paths, seed=4)]
    four = read("mrcr", paths, num_needles=4)
    assert sorted(s["outputs"][0] for s in four) == sorted(
        conversation(n)["answer"] for n in range(5, 15, 2)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{"}, r"row 2: prompt: is not valid JSON"),
        ({"prompt": json.dumps(TURNS[:2])}, r"row 2: prompt: does not end with a message of the u"),
        ({"prompt": json.dumps([{"role": "x", "content": ""}])}, r"row 2: prompt\.0\.role: "),
        ({"answer": "A tapir."}, r"row 2: answer: does not begin with random_string_to_prepend"),
        ({"random_string_to_prepend": ""}, r"row 2: random_string_to_prepend: "),
    ],
)
def test_bad_conversations_are_refused(
    read: Read, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "bad.parquet", [conversation(0), conversation(1, **changes)])
    with pytest.raises(ConfigError, match=message):
        read("mrcr", {"test": path})


def test_files_that_are_not_parquet_are_refused(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.parquet: is not Parquet"):
        read("mrcr", {"test": path})
    path = tmp_path / "a.txt"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.txt: must end in jsonl, json or parquet"):
        read("mrcr", {"test": path})


def test_graphs(read: Read, tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"The graph has the following edges:\na -> b\n\nOperation:\nNumber {n}.\n",
            "answer_nodes": ["a", "b"][: n % 3],
            "prompt_chars": 60,
            "problem_type": ("parents", "bfs")[n % 2],
            "date_added": "02-27-2026",
        }
        for n in range(6)
    ]
    path = parquet(tmp_path / "graphwalks.parquet", rows)
    samples = read("graphwalks", {"test": path}, problem_type="bfs", extra_tokens=300)
    assert sorted(sample["input"] for sample in samples) == [rows[n]["prompt"] for n in (1, 3, 5)]
    for sample in samples:
        row = rows[int(sample["id"].rpartition("-")[2])]
        assert sample["outputs"] == row["answer_nodes"]
        assert plain_prompt(sample) == row["prompt"] + "Final Answer:"
        assert messages(sample) == [{"role": "user", "content": row["prompt"]}]
        assert (stops(sample, in_chat=False), stops(sample, in_chat=True)) == (["\n"], [])
        size = count_tokens(tokenizer, f"Final Answer: [{', '.join(row['answer_nodes'])}]") + 300
        assert size <= sample["max_new_tokens"] < size + 256
    old = [{**{k: v for k, v in row.items() if k != "answer_nodes"}} for row in rows[:1]]
    with pytest.raises(ConfigError, match=r"row 1: has no `answer_nodes`"):
        read("graphwalks", {"test": parquet(tmp_path / "old.parquet", old)})
