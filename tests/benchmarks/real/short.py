"""Short sets of lm-eval as plain requests, which are scored without lm-eval.

A row has `requests` ([prompt, continuation] each). With `right`, the score is 100 if the likeliest
continuation is one of these; `lengths` divide the likelihoods first, as `acc_norm` does. Without
`right` there is one request, and the score is 100 if the model would have written it (`acc` of
LAMBADA). Tasks that score generated text need lm-eval on the machine that scores, and are refused.
"""

from collections.abc import Sequence
from typing import Any

METRICS = ("acc", "acc_norm")
_FAR = -1e9
Row = dict[str, Any]


def freeze(settings: Row) -> list[Row]:
    """Return the rows of a task of lm-eval.

    Args:
        settings: as `lm_eval_catalog.leaf_settings` returns them.

    Raises:
        ConfigError: the task generates text, or has another metric.
        PreflightError: its data are not available.
    """
    from longred.errors import ConfigError
    from longred.evaluation.lm_eval_tasks import FEWSHOT_SEED, build

    task, metric = build(settings), settings["metric"]
    kinds = ("multiple_choice", "loglikelihood")
    if task.OUTPUT_TYPE not in kinds or metric not in METRICS:
        raise ConfigError(
            f"{settings['name']}: {metric} of a task of kind {task.OUTPUT_TYPE} cannot be scored "
            f"without lm-eval; give tasks of kind {' or '.join(kinds)} with metric "
            f"{' or '.join(METRICS)}"
        )
    task.set_fewshot_seed(FEWSHOT_SEED)
    task.build_all_requests(limit=settings["limit"])
    requests: dict[int, list[Any]] = {}
    for instance in task.instances:
        requests.setdefault(instance.doc_id, []).append(instance)
    return [
        {"id": f"{settings['task']}-{number}", **_row(task, settings, instances)}
        for number, instances in sorted(requests.items())
    ]


def _row(task: Any, settings: Row, instances: Sequence[Any]) -> Row:
    from longred.errors import ConfigError

    row: Row = {"requests": [list(map(str, instance.args)) for instance in instances]}
    document, metric = instances[0].doc, settings["metric"]
    if task.OUTPUT_TYPE == "loglikelihood":
        return row
    choices = task.doc_to_choice(document)
    if len(choices) != len(instances):
        raise ConfigError(f"{settings['name']}: asks more than its choices; leave it out")
    # The task itself says which answers are right, whatever form its data have.
    count = len(choices)
    likelihoods = [[(0.0 if n == i else _FAR, False) for n in range(count)] for i in range(count)]
    row["right"] = [
        i
        for i, results in enumerate(likelihoods)
        if float(task.process_results(document, results)[metric]) == 1.0
    ]
    if metric == "acc_norm":
        row["lengths"] = [len(choice) for choice in choices]
    return row


def score(lm: Any, rows: Sequence[Row]) -> list[Row]:
    """Return `id` and `score` (percent) of each row.

    Args:
        lm: a `LocalLM`.
        rows: as `freeze` returns them.
    """
    from longred.evaluation.local_lm import Request
    from longred.evaluation.results import likeliest

    asked = [
        Request(tuple(pair), number) for number, row in enumerate(rows) for pair in row["requests"]
    ]
    lm.reset(max(len(lm.tok_encode("".join(request.args))) for request in asked))
    found: list[list[tuple[float, bool]]] = [[] for _ in rows]
    for request, result in zip(asked, lm.loglikelihood(asked), strict=True):
        found[request.doc_id].append(result)
    answers = []
    for row, results in zip(rows, found, strict=True):
        if "right" in row:
            lengths = row.get("lengths", [1] * len(results))
            scaled = [(x / size,) for (x, _), size in zip(results, lengths, strict=True)]
            is_right = likeliest(scaled) in row["right"]
        else:
            is_right = results[0][1]
        answers.append({"id": row["id"], "score": 100.0 * is_right})
    return answers
