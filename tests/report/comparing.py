"""Compares the models of the study, whole or changed."""

import json
import shutil
from pathlib import Path
from typing import Any

from study import Study

from longred.report.scores import Comparison, collect
from longred.store.artifacts import write_json


def compare(folders: dict[str, Path], **settings: Any) -> Comparison:
    values = {"original_window": 256, "min_points_above_chance": 10.0, "method": "longred-c"}
    return collect(folders, **{**values, "baselines": ["cpt"], **settings})


def edited(
    study: Study, folder: Path, model: str, change: dict[str, Any], remove: tuple[str, ...] = ()
) -> dict[str, Path]:
    """Return the study's folders; in one model's scores, change top-level keys or remove tasks."""
    copy = folder / model
    shutil.copytree(study.scores[model], copy)
    scores = json.loads((copy / "scores.json").read_text())
    scores.update(change)
    for task in remove:
        scores["short"].pop(task, None)
        for tasks in scores["ruler"].values():
            tasks.pop(task, None)
    write_json(copy / "scores.json", scores)
    return {**study.scores, model: copy}
