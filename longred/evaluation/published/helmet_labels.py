"""HELMET's in-context learning: many labelled texts, then one to label; labels are numbers.

Wording, draws and numbers of labels are those of princeton-nlp/HELMET (MIT). Its data sets are read
from files with the columns of the hub: CogComp/trec (`text`, `coarse_label`, `fine_label`),
PolyAI/banking77 (`text`, `label`), clinc_oos `plus` (`text`, `intent`; its validation split is the
test) and xingkunliuxtracta/nlu_evaluation_data (`text`, `label`; one file, split by HELMET's seed).
"""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.published.files import Table
from longred.evaluation.published.helmet import SEED
from longred.evaluation.published.reading import Reading, shuffled
from longred.evaluation.tasks import Row

_PROMPT = (
    "Use the provided mapping from the text to label to assign a label to the text. Only output "
    '"label: {{label}}" and nothing else. \n\n{context}\n\n{text}'
)
TEST_SHARE = 0.1
"""Share of a single file's rows that are the test."""

_Labelled = tuple[str, int]


def read_labels(reading: Reading) -> Iterator[Row]:
    """Yield texts to label behind `shots` labelled ones, the same number of each label."""
    num_labels = reading.settings["num_labels"]
    train, test = _splits(reading)
    if reading.limit is not None and len(test) > reading.limit:
        test = [test[index] for index in shuffled(len(test), SEED)]
        test = _balanced(test, reading.limit, random.Random(SEED))  # noqa: S311
    for number, (text, label) in enumerate(test):
        seed = (int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) + SEED) % 2**31
        examples = _balanced(train, reading.shots, random.Random(seed))  # noqa: S311
        names = list(range(num_labels))
        random.Random(seed).shuffle(names)  # noqa: S311
        context = "\n\n".join(f"{each}\nlabel: {names[shown]}" for each, shown in examples)
        yield {
            "id": f"{reading.name}-{number}",
            "input": _PROMPT.format(context=context, text=text),
            "suffix": "\nlabel:",
            "outputs": [str(names[label])],
            "max_new_tokens": 20,
            "until": [],
        }


def _splits(reading: Reading) -> tuple[list[_Labelled], list[_Labelled]]:
    """Return the rows to learn from and the rows to label."""
    train = _labelled(reading, reading.table("train"))
    if reading.paths("test"):
        return train, _labelled(reading, reading.test)
    order = shuffled(len(train), SEED)
    num_test = math.ceil(TEST_SHARE * len(train))
    if num_test >= len(train):
        raise ConfigError(f"{reading.name}: data_files.train: needs at least two rows")
    return [train[index] for index in order[num_test:]], [train[i] for i in order[:num_test]]


def _labelled(reading: Reading, table: Table) -> list[_Labelled]:
    column, num_labels = reading.settings["label_column"], reading.settings["num_labels"]
    found = []
    for number in range(len(table)):
        values: dict[str, Any] = table.values(number)
        text, label = values.get("text"), values.get(column)
        if not isinstance(text, str):
            raise ConfigError(f"{table.place(number)}: text: must be text")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_labels:
            raise ConfigError(
                f"{table.place(number)}: {column}: must be a whole number from 0 to "
                f"{num_labels - 1}, got {label!r}"
            )
        found.append((text, label))
    return found


def _balanced(rows: Sequence[_Labelled], count: int, rng: random.Random) -> list[_Labelled]:
    """Draw rows in rounds that hold one row of each label, in random order.

    Each label gives rows without repetition as far as it has enough. Source: HELMET's
    `balance_labels`, whose draws it makes.
    """
    by_label: dict[int, list[_Labelled]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    num_rounds = math.ceil(count / len(by_label))
    rounds: list[list[_Labelled]] = [[] for _ in range(num_rounds)]
    for same in by_label.values():
        indices = rng.sample(range(len(same)), num_rounds % len(same))
        while len(indices) < num_rounds:
            indices += rng.sample(range(len(same)), min(num_rounds - len(indices), len(same)))
        for each, index in zip(rounds, indices, strict=True):
            each.append(same[index])
    for each in rounds:
        rng.shuffle(each)
    return [row for each in rounds for row in each][:count]
