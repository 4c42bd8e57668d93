"""RULER's 13 tasks and one of its kind, with full parameters and compact ones for short windows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from longred.evaluation.ruler import extraction, niah, pairs, qa, tracking
from longred.evaluation.ruler.fitting import COMPACT_BUDGET
from longred.evaluation.ruler.request import Request, Start


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        prepare: returns what begins a sample of a request.
        metric: name of its score: `recall` or `any_match`.
        full: RULER's parameters.
        compact: parameters for windows below 4,096: short words, low frequencies, no or short
            examples, no distractors that a question brings, small budgets.
        questions: form of the questions it asks, if it asks any.
    """

    prepare: Callable[[Request], Start]
    metric: str
    full: Any
    compact: Any
    questions: Literal["squad", "hotpot"] | None = None


def _needles(compact_budget: int, **settings: Any) -> Task:
    full = niah.Settings(**settings)
    short = {"keys": "short_words"} if full.keys == "words" else {}
    compact = niah.Settings(**{**settings, **short, "budget": compact_budget})
    return Task(prepare=niah.prepare, metric="recall", full=full, compact=compact)


TASKS: dict[str, Task] = {
    "niah_single_1": _needles(COMPACT_BUDGET, haystack="noise"),
    "niah_single_2": _needles(COMPACT_BUDGET, haystack="text"),
    "niah_single_3": _needles(48, haystack="text", values="uuids"),
    "niah_multikey_1": _needles(COMPACT_BUDGET, haystack="text", num_keys=4),
    "niah_multikey_2": _needles(COMPACT_BUDGET, haystack="needles"),
    "niah_multikey_3": _needles(48, haystack="needles", keys="uuids", values="uuids"),
    "niah_multivalue": _needles(48, haystack="text", num_values=4),
    "niah_multiquery": _needles(48, haystack="text", num_keys=4, num_queries=4),
    "vt": Task(
        prepare=tracking.prepare,
        metric="recall",
        full=tracking.Settings(),
        compact=tracking.Settings(num_hops=2, example_tokens=0, budget=24),
    ),
    "cwe": Task(
        prepare=extraction.prepare_list,
        metric="recall",
        full=extraction.ListSettings(),
        compact=extraction.ListSettings(
            num_common=3, repeats=(5, 1), example_words=4, example_repeats=(3, 1), budget=32
        ),
    ),
    "fwe": Task(
        prepare=extraction.prepare_text,
        metric="recall",
        full=extraction.TextSettings(),
        compact=extraction.TextSettings(word_length=4, budget=24),
    ),
    "qa_1": Task(
        prepare=qa.prepare,
        metric="any_match",
        full=qa.Settings(),
        compact=qa.Settings(only_supporting=True),
        questions="squad",
    ),
    "qa_2": Task(
        prepare=qa.prepare,
        metric="any_match",
        full=qa.Settings(),
        compact=qa.Settings(only_supporting=True),
        questions="hotpot",
    ),
    "kv_retrieval": Task(
        prepare=pairs.prepare,
        metric="recall",
        full=pairs.Settings(),
        compact=pairs.Settings(keys="short_words", values="numbers", budget=COMPACT_BUDGET),
    ),
}
"""Task name → what it is; the last is not RULER's."""
