"""Checks the right answers of multiple-choice tasks of lm-eval.

lm-eval counts a document whose answer is none of its choices as wrong, whatever the model says.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from longred.errors import shown


def wrong_answers(task: Any, limit: int | None) -> dict[int, str]:
    """Return what is wrong with the right answers of a task.

    Args:
        task: as lm-eval builds it.
        limit: check the first documents only; None for all.

    Returns:
        Number of a document, from 0 -> its problem. Empty for tasks that are no multiple choice,
        and for those that score answers with code of their own.
    """
    # Such code may read the answer from any column, so the target says nothing.
    own_code = callable(task.get_config("process_results"))
    own_code |= type(task).process_results is not ConfigurableTask.process_results
    if task.OUTPUT_TYPE != "multiple_choice" or own_code:
        return {}
    documents = itertools.islice(task.task_docs, limit)
    found = enumerate(problem_of(task, document) for document in documents)
    return {number: problem for number, problem in found if problem is not None}


def answer_field(task: Any) -> str:
    """Return the field of a task that gives the right answer."""
    # With one prompt per choice, as in winogrande, lm-eval reads the answer where the text stands.
    return "doc_to_text" if task.multiple_input else "doc_to_target"


def problem_of(task: Any, document: Mapping[str, Any]) -> str | None:
    """Return why no answer to a multiple-choice document can be right; None if one can.

    Reads choices and answer as lm-eval's `ConfigurableTask.process_results` does.
    """
    choices = task.doc_to_choice(document)
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        return f"its choices are no list of texts, but {shown(choices)}"
    if len(choices) == 0:
        return "it has no choices"
    answer = getattr(task, answer_field(task))(document)
    indices = f"0 to {len(choices) - 1}"
    if isinstance(answer, list) != bool(task.multiple_target):
        kinds = ("a list", "none") if isinstance(answer, list) else ("no list", "one")
        return f"the answer {shown(answer)} is {kinds[0]}, that of the first document is {kinds[1]}"
    if isinstance(answer, list):
        if answer and all(_is_index(each, len(choices)) for each in answer):
            return None
        return (
            f"the answers {shown(answer)} are no indices of its {len(choices)} choices ({indices})"
        )
    if isinstance(answer, str):
        if answer in choices:
            return None
        return (
            f"the answer '{shown(answer)}' is neither the text of one of its {len(choices)} "
            f"choices nor a number from {indices}"
        )
    if _is_index(answer, len(choices)):
        return None
    return f"answer {shown(answer)} is no index of its {len(choices)} choices ({indices})"


def _is_index(value: Any, count: int) -> bool:
    """Return whether a value equals the position of a choice, as numbers of any type do."""
    return any(value == index for index in range(count))
