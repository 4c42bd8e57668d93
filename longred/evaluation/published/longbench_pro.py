"""LongBench Pro (arXiv 2601.02872): eleven kinds of tasks on long documents, without its summaries.

The data (caskcsg/LongBench-Pro on the hub) have the licence Apache-2.0. A prompt is the document,
three empty lines and the row's own question for models that answer at once. Summaries are left out:
their score needs an embedding model.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, Field

from longred.errors import ConfigError
from longred.evaluation.published.reading import Reading, shuffled
from longred.evaluation.tasks import Row

MAX_NEW_TOKENS = 1024
"""Budget of an answer without reasoning, as in the paper."""

MEASURE_OF = {
    "T1.1": "ndcg",
    "T1.2": "ndcg",
    "T2.1": "pairs",
    "T2.2": "pairs",
    "T3.1": "accuracy",
    "T3.2": "accuracy",
    "T5.1": "f1",
    "T5.2": "f1",
    "T6.1": "recall",
    "T6.2": "f1",
    "T6.3": "pairs",
    "T7.1": "f1",
    "T7.2": "f1",
    "T7.3": "f1",
    "T8.1": "recall",
    "T8.2": "recall",
    "T8.3": "recall",
    "T9.1": "f1",
    "T9.2": "f1",
    "T10.1": "recall",
    "T10.2": "recall",
    "T11.1": "accuracy",
    "T11.2": "accuracy",
}
"""Number of a task → its measure, see `metrics.MEASURES`; the summaries, T4, have none."""


class _Row(BaseModel):
    id: str | int
    context: str
    language: Literal["English", "Chinese"]
    token_length: str
    secondary_task: str
    question_nonthinking: str
    answer: list[str] = Field(min_length=1)


def read_longbench_pro(reading: Reading) -> Iterator[Row]:
    """Yield the questions of one primary task (`group`: T1 to T11 without T4), in random order.

    `language` and `token_length` (`8k` to `256k`) select rows. The plain form ends with the mark
    that the questions ask for, so that a base model answers at once; a blank line ends its answer.
    """
    settings = reading.settings
    for number in shuffled(len(reading.test), reading.seed):
        row = reading.test.row(number, _Row)
        task = row.secondary_task.split(" ")[0]
        if task.partition(".")[0] != settings["group"]:
            continue
        if settings["language"] not in (None, row.language):
            continue
        if settings["token_length"] not in (None, row.token_length):
            continue
        if task not in MEASURE_OF:
            raise ConfigError(
                f"{reading.test.place(number)}: secondary_task: {row.secondary_task} is unknown"
            )
        mark = "[Answer]" if row.language == "English" else "[答案]"
        yield {
            "id": str(row.id),
            "input": f"{row.context}\n\n\n\n{row.question_nonthinking}",
            "suffix": f"\n\n{mark}\n",
            "outputs": row.answer,
            "measure": MEASURE_OF[task],
            "max_new_tokens": MAX_NEW_TOKENS,
            "until": [],
            "until_plain": ["\n\n"],
        }
