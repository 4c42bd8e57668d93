"""A table of models x measures from the lines of a real model."""

import math
from collections.abc import Sequence

from gpu.lines import Line, latest

from real.inputs import MODELS


def table(lines: Sequence[Line]) -> str:
    """Return one row a measure and one column a model; `-` where it was not measured.

    Losses are nats per token of all positions and of the last sixteenth, RULER is the mean of its
    tasks in percent, with all samples measured so far.
    """
    found = latest(lines)
    columns = {model: _figures(found, model) for model in MODELS}
    measures = list(dict.fromkeys(key for figures in columns.values() for key in figures))
    rows = [["measure", *MODELS]]
    rows += [
        [measure, *(columns[model].get(measure, "-") for model in MODELS)] for measure in measures
    ]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def _figures(found: dict[str, Line], model: str) -> dict[str, str]:
    """Return the figures of a model by measure, in the order of the table."""
    figures: dict[str, str] = {}
    steps = found.get(f"train-{model}/steps")
    if steps is not None:
        figures["training steps"] = f"{steps['measured']['num_steps']}"
    own = {
        name.removeprefix(f"{model}/"): line["measured"]
        for name, line in found.items()
        if name.startswith(f"{model}/")
    }
    for name, measured in own.items():
        if name.startswith("loss-"):
            length = name.removeprefix("loss-")
            figures[f"loss {length}"] = f"{measured['nats_per_token']:.4f}"
            figures[f"loss {length}, end"] = f"{measured['bins'][-1]['nats']:.4f}"
        elif name.startswith("short-"):
            figures[name.replace("-", " ", 1)] = f"{measured['score']:.1f}"
        elif name == "similarity":
            figures["similarity, last"] = f"{measured['last']:.4f}"
            figures["similarity, mean"] = f"{measured['mean']:.4f}"
            figures["attention KL"] = f"{measured['attention_kl']:.5f}"
    return figures | _ruler(found, model)


def _ruler(found: dict[str, Line], model: str) -> dict[str, str]:
    """Return the scores of RULER by length and task, over the samples of both rounds."""
    sums: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for name, line in found.items():
        item, _, length = name.partition("/")
        if length and item in (f"ruler-{model}", f"more-{model}"):
            for task, scores in line["tasks"].items():
                pair = (scores["score"], scores["num_samples"])
                sums.setdefault((int(length), task), []).append(pair)
    scores = {
        key: math.fsum(score * count for score, count in pairs) / sum(n for _, n in pairs)
        for key, pairs in sums.items()
    }
    figures = {}
    for length in sorted({length for length, _ in scores}):
        own = {task: score for (n, task), score in scores.items() if n == length}
        figures[f"RULER {length}"] = f"{sum(own.values()) / len(own):.1f}"
        figures |= {f"  {task} {length}": f"{score:.1f}" for task, score in own.items()}
    return figures
