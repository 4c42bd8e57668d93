"""The table of tasks: RULER's 13, `kv_retrieval` and RULER v2's 12.

Every task has RULER's own parameters (`full`) and parameters for short windows (`compact`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longred.evaluation.ruler import extraction, pairs, qa, retrieval, tracking
from longred.evaluation.ruler.fitting import COMPACT_BUDGET, SampleSpec, Start
from longred.evaluation.ruler.questions import Form
from longred.evaluation.ruler.v2 import choices, documents, needles

FIRST_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        prepare: returns the function that starts samples of a specification.
        full: RULER's parameters.
        compact: parameters for windows below 4,096: short words, low frequencies, small or no
            examples, no distractors that belong to a question, small budgets.
        metric: name of its metric in `longred.evaluation.metrics.ruler`.
        questions: form of its questions, for question answering.
        has_passages: whether passages of the haystack fill prompts that use up all documents.
        chance: score of guessing, in percent.
        version: number of its generator. Where a seed gives other samples than before, it becomes
            one more than the largest in `TASKS`.
    """

    prepare: Callable[[SampleSpec], Start]
    full: Any
    compact: Any
    metric: str = "recall"
    questions: Form | None = None
    has_passages: bool = False
    chance: float = 0.0
    version: int = FIRST_VERSION


def _niah(compact_budget: int, **settings: Any) -> Task:
    full = retrieval.NeedleSettings(**settings)
    short = {"keys": "short_words"} if full.keys == "words" else {}
    compact = retrieval.NeedleSettings(**{**settings, **short, "budget": compact_budget})
    return Task(prepare=retrieval.prepare_needles, full=full, compact=compact)


def _qa(form: Form) -> Task:
    return Task(
        prepare=qa.prepare,
        full=qa.Settings(),
        compact=qa.Settings(only_supporting=True),
        metric="any_match",
        questions=form,
        has_passages=True,
        version=4,
    )


def _numbers(compact_budget: int, **settings: Any) -> Task:
    """Return a task of RULER v2 on numbers."""
    return Task(
        prepare=needles.prepare,
        full=needles.Settings(**settings),
        compact=needles.Settings(**settings, keys="short_words", budget=compact_budget),
        metric="answer_match",
    )


def _choices(name: str, metric: str = "answer_match", chance: float = 0.0) -> Task:
    """Return a task of RULER v2 on questions of MMLU."""
    settings = choices.SETTINGS[name]
    return Task(
        prepare=choices.prepare,
        full=settings,
        compact=choices.compact(settings),
        metric=metric,
        questions="mmlu",
        chance=chance,
        version=5,
    )


def _documents(name: str) -> Task:
    """Return a task of RULER v2 on documents of HotpotQA."""
    settings = documents.SETTINGS[name]
    return Task(
        prepare=documents.prepare,
        full=settings,
        compact=documents.compact(settings),
        metric="any_answer_match",
        questions="hotpot",
        has_passages=True,
    )


TASKS: dict[str, Task] = {
    "niah_single_1": _niah(COMPACT_BUDGET, haystack="noise"),
    "niah_single_2": _niah(COMPACT_BUDGET, haystack="text"),
    "niah_single_3": _niah(48, haystack="text", values="uuids"),
    "niah_multikey_1": _niah(COMPACT_BUDGET, haystack="text", num_keys=4),
    "niah_multikey_2": _niah(COMPACT_BUDGET, haystack="needles"),
    "niah_multikey_3": _niah(48, haystack="needles", keys="uuids", values="uuids"),
    "niah_multivalue": _niah(48, haystack="text", num_values=4),
    "niah_multiquery": _niah(48, haystack="text", num_keys=4, num_queries=4),
    "vt": Task(
        prepare=tracking.prepare,
        full=tracking.Settings(),
        compact=tracking.Settings(num_hops=2, example_tokens=0, budget=24),
    ),
    "cwe": Task(
        prepare=extraction.prepare_list,
        full=extraction.ListSettings(),
        compact=extraction.ListSettings(
            num_common=3, repeats=(5, 1), example_words=4, example_repeats=(3, 1), budget=32
        ),
        version=4,
    ),
    "fwe": Task(
        prepare=extraction.prepare_text,
        full=extraction.TextSettings(),
        compact=extraction.TextSettings(word_length=4, budget=24),
    ),
    "qa_1": _qa("squad"),
    "qa_2": _qa("hotpot"),
    "kv_retrieval": Task(
        prepare=pairs.prepare,
        full=pairs.Settings(),
        compact=pairs.Settings(keys="short_words", values="numbers", budget=COMPACT_BUDGET),
        version=4,
    ),
    "v2_mk_niah_basic": _numbers(24, num_values=1),
    "v2_mk_niah_easy": _choices("mk_niah_easy"),
    "v2_mk_niah_medium": _choices("mk_niah_medium", "letter_match", 25.0),
    "v2_mk_niah_hard": _choices("mk_niah_hard", "letter_match", 25.0),
    "v2_mv_niah_basic": _numbers(72, num_values=4),
    "v2_mv_niah_easy": _choices("mv_niah_easy"),
    "v2_mv_niah_medium": _choices("mv_niah_medium", "last_answer_match"),
    "v2_mv_niah_hard": _choices("mv_niah_hard"),
    "v2_qa_basic": _documents("qa_basic"),
    "v2_qa_easy": _documents("qa_easy"),
    "v2_qa_medium": _documents("qa_medium"),
    "v2_qa_hard": _documents("qa_hard"),
}
"""Name → task; `kv_retrieval` is not one of RULER's."""
