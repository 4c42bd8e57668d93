"""Small files in exactly the form of HELMET's data, the same at every call."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = ["alpha", "the", "beta,", "gamma", "{x}", "an", "delta", "Theta.", "iota", "a", "kappa"]


def words(start: int, count: int) -> str:
    return " ".join(WORDS[(start * 7 + 3 * step) % len(WORDS)] for step in range(count))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def json_kv(folder: Path) -> Path:
    rows = [
        {
            "context": json.dumps({f"key-{i}-{j}": words(i + j, 2) for j in range(5)}),
            "question": f"key-{i}-2",
            "answer": words(i + 2, 2),
            "demos": [[f"demo-{i}-{j}", words(j, 1)] for j in range(3)],
            "num_kvs": 5,
        }
        for i in range(12)
    ]
    return write(folder / "json_kv.jsonl", rows)


def needles(folder: Path) -> Path:
    rows = [
        {
            "context": words(i, 30),
            "query": f"able-{i}",
            "type_needle_v": "numbers",
            "outputs": [str(1000 * i + j) for j in range(3)],
        }
        for i in range(12)
    ]
    return write(folder / "needles.jsonl", rows)


def question(number: int, num_passages: int, **values: Any) -> dict[str, Any]:
    passages = [
        {"title": words(number + j, 2), "text": words(number * j, 8), "has_answer": j == 0}
        for j in range(num_passages)
    ]
    return {
        "question": f"What is {words(number, 3)} {number}?",
        "answers": [words(number, 1), words(number + 1, 2)],
        "ctxs": passages,
        **values,
    }


def questions(folder: Path, *, with_ids: bool) -> dict[str, Path]:
    """Return files of nine questions at two depths each, and of examples, some of them twice."""
    tests = []
    for number in range(9):
        ids = {"id": f"q{number}"} if with_ids else {}
        row = question(number, 4, **ids)
        tests += [row, {**row, "ctxs": row["ctxs"][::-1]}]
    demos = [
        question(100 + n, 2, **({"id": f"d{n}"} if with_ids else {})) for n in (0, 1, 2, 3, 4, 0, 1)
    ]
    name = "ids" if with_ids else "plain"
    return {
        "test": write(folder / f"{name}_test.jsonl", tests),
        "demos": write(folder / f"{name}_demos.jsonl", demos),
    }


def popular(folder: Path) -> dict[str, Path]:
    rows = [question(n, 3, id=n, s_pop=(10, 999, 1000, 5000, 500)[n % 5]) for n in range(25)]
    short = [{**row, "ctxs": row["ctxs"][:1]} for row in rows]
    return {
        "test": write(folder / "pop_test.jsonl", rows),
        "demos": write(folder / "pop_demos.jsonl", short),
    }


def query(number: int, num_documents: int, *, with_title: bool) -> dict[str, Any]:
    documents = [
        {
            "id": str(97 * number + 13 * j + 5),
            "text": words(number + j, 5),
            "label": (number + j * j) % 4,
            **({"title": words(j, 1)} if with_title else {}),
        }
        for j in range(num_documents)
    ]
    return {"qid": str(1000 + number), "query": f"query {number}", "ctxs": documents}


def rankings(folder: Path, *, num_demos: int, with_title: bool) -> dict[str, Path]:
    tests = [query(n // 3, 12, with_title=with_title) for n in range(30)]
    demos = [query(n, 3, with_title=with_title) for n in range(num_demos)]
    name = f"rank_{num_demos}_{with_title}"
    return {
        "test": write(folder / f"{name}_test.jsonl", tests),
        "demos": write(folder / f"{name}_demos.jsonl", [*demos, demos[0]]),
    }


def labelled(
    folder: Path, name: str, column: str, num_labels: int
) -> tuple[dict[str, Path], list[dict[str, Any]], list[dict[str, Any]]]:
    train = [
        {"text": f"{words(n, 3)} {n}", column: n if n < num_labels else (n * n) % num_labels}
        for n in range(3 * num_labels + 5)
    ]
    test = [{"text": f"{words(n, 2)} test {n}", column: (5 * n) % num_labels} for n in range(40)]
    files = {
        "train": write(folder / f"{name}_train.jsonl", train),
        "test": write(folder / f"{name}_test.jsonl", test),
    }
    return files, train, test


def digest(prompts: Iterable[str]) -> str:
    """Return a short hash of texts in their order."""
    import hashlib

    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16]
