"""A small study on disk: four models evaluated on the same samples."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longred.config import ReportConfig
from longred.evaluation.results import summary
from longred.report.inputs import MadeBy, read_inputs
from longred.report.write import write
from longred.store.artifacts import Store, write_json
from longred.store.journal import Journal

SHORT = {"bracket_closing": 25.0, "cloze": 25.0, "continuation": 25.0, "key_recall": 0.0}
CAPACITY = {
    "bracket_closing": "coding",
    "cloze": "reading",
    "continuation": "general",
    "key_recall": "reading",
}
RULER = ("niah_single_1", "niah_single_2")
LENGTHS = (256, 512, 1024)
NUM_SAMPLES = 120
NUM_LAYERS = 4
# Probability that a model solves a sample of a task; bracket_closing is too close to chance to be
# compared.
ABILITY: dict[str, dict[str, float]] = {
    "original": {"bracket_closing": 0.30, "cloze": 0.62, "continuation": 0.71, "key_recall": 0.90},
    "rescaled": {"bracket_closing": 0.27, "cloze": 0.55, "continuation": 0.64, "key_recall": 0.48},
    "cpt": {"bracket_closing": 0.31, "cloze": 0.58, "continuation": 0.66, "key_recall": 0.06},
    "longred-c": {"bracket_closing": 0.29, "cloze": 0.61, "continuation": 0.70, "key_recall": 0.87},
}
NEEDLE = {
    "original": (0.92, 0.70, 0.20),
    "rescaled": (0.50, 0.47, 0.30),
    "cpt": (0.04, 0.02, 0.01),
    "longred-c": (0.90, 0.88, 0.86),
}
SIMILARITY = {
    "original": (1.0, 1.0, 1.0, 1.0),
    "rescaled": (0.991, 0.986, 0.980, 0.976),
    "cpt": (0.991, 0.982, 0.980, 0.979),
    "longred-c": (0.998, 0.993, 0.993, 0.992),
}
NATS = {"original": 2.570, "rescaled": 2.683, "cpt": 2.593, "longred-c": 2.575}
KL = {"original": 0.0, "rescaled": 0.07, "cpt": 0.05, "longred-c": 0.01}
KEEP_STEPS = (10, 30)


def _add_students_on_the_way() -> None:
    """Interpolate the saved students between the rescaled model and the final one."""
    for method in ("longred-c", "cpt"):
        for step in KEEP_STEPS:
            name, part = f"{method}-step-{step}", step / 60
            tables: tuple[dict[str, Any], ...] = (NATS, KL, ABILITY, NEEDLE, SIMILARITY)
            for table in tables:
                table[name] = _between(table["rescaled"], table[method], part)


def _between(start: Any, end: Any, part: float) -> Any:
    if isinstance(start, dict):
        return {key: _between(start[key], end[key], part) for key in start}
    if isinstance(start, tuple):
        return tuple(_between(a, b, part) for a, b in zip(start, end, strict=True))
    return start + part * (end - start)


_add_students_on_the_way()
PROFILED = {"model": "5eed5eed5eed5eed", "extension": "0ddba11c0ffee000"}
RECIPE: dict[str, Any] = {
    "name": "demo",
    "seed": 3,
    "original_window": 256,
    "target_window": 1024,
    "extension": {"method": "abf", "rope_theta": 160000.0},
    "training": {
        "method": "longred-c",
        "baselines": ["cpt"],
        "learning_rate": 0.0005,
        "keep_steps": list(KEEP_STEPS),
    },
}


MADE_BY = MadeBy(
    run="20260101-101500-demo-a1b2",
    date="2026-01-01 10:15 UTC",
    model=f"organisation/model at {'8cde5ca8' * 5}",
)


@dataclass
class Study:
    """Folders of one study, and the scores written into them."""

    root: Path
    scores: dict[str, Path] = field(default_factory=dict)
    students: dict[str, Path] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    answers: dict[tuple[str, str], np.ndarray[Any, Any]] = field(default_factory=dict)

    def average(self, model: str, units: list[str]) -> float:
        """Return the mean over units of the mean over samples, in percent."""
        return float(np.mean([self.answers[model, unit].mean() for unit in units]))

    def short_average(self, model: str) -> float:
        """Return the mean over the two compared capacities; reading has two tasks."""
        reading, general = self.average(model, ["cloze", "key_recall"]), ["continuation"]
        return (reading + self.average(model, general)) / 2


def make_study(root: Path, *, num_samples: int = NUM_SAMPLES) -> Study:
    """Write every folder that a report reads."""
    study = Study(root)
    store = Store(root)
    study.folders["data"] = store.build("data", {}, {}, _write_data).folder
    study.folders["profile"] = store.build("profiling", {}, PROFILED, _write_profile).folder
    study.folders["selection"] = store.build("selection", {}, {}, _write_selection).folder
    for method in ("longred-c", "cpt"):
        made = store.build(
            "training", {"method": method}, {}, lambda f, w, m=method: _write_training(f, m)
        )
        study.students[method] = made.folder
    samples = store.build("evaluation", {}, {}, lambda f, w: _write_samples(f, num_samples))
    study.folders["samples"] = samples.folder
    for name in ABILITY:
        inputs = {"samples": samples.digest, "checkpoint": f"c0ffee{len(name):010d}"}
        made = store.build(
            "evaluation",
            {"name": name},
            inputs,
            lambda f, w, n=name: _write_scores(f, n, study, num_samples),
        )
        study.scores[name] = made.folder
    return study


def unit_scores(model: str, unit: str, num_samples: int) -> np.ndarray[Any, Any]:
    """Return per-sample scores in percent; the same samples are hard for all models."""
    task, _, length = unit.partition("@")
    ability = NEEDLE[model][LENGTHS.index(int(length))] if length else ABILITY[model][task]
    shared = np.random.default_rng([len(unit), *unit.encode()]).random(num_samples)
    own = np.random.default_rng([len(model), *model.encode(), *unit.encode()]).random(num_samples)
    return 100.0 * (0.7 * shared + 0.3 * own < ability).astype(np.float64)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _write_data(folder: Path, work: Path) -> None:
    write_json(
        folder / "index.json",
        {"format_version": 1, "tokens": {"read": 10, "written": 8, "dropped": 2}},
    )


def _write_profile(folder: Path, work: Path) -> None:
    write_json(folder / "drift.json", _drift([0.021, 0.064, 0.113, 0.087], "rescaled"))


def _drift(kl: list[float], model: str) -> dict[str, Any]:
    similarity = list(SIMILARITY[model])
    return {
        "num_layers": NUM_LAYERS,
        "attention_kl": kl,
        "attention_kl_per_head": [[0.5 * value, 1.5 * value] for value in kl],
        "hidden_similarity": similarity,
        "position_starts": [0, 1, 2],
        "attention_kl_by_position": [[0.0, value, 2 * value] for value in kl],
        "hidden_similarity_by_position": [[1.0, value, value] for value in similarity],
    }


def _write_selection(folder: Path, work: Path) -> None:
    chosen = {
        "strategy": "attention_kl",
        "distill_layers": [2, 3, 4],
        "layer_scores": [0.021, 0.064, 0.113, 0.087],
        "number_text": "the layers with the highest attention KL and the last are distilled, as "
        "many as the recipe says: 3 of 4 layers hold 93 % of the total attention KL",
        "reasons": [
            {"distill_layer": 2, "decoder_layer": 1, "text": "hidden state 2: rank 3 of 4"},
            {"distill_layer": 3, "decoder_layer": 2, "text": "hidden state 3: rank 1 of 4"},
            {"distill_layer": 4, "decoder_layer": 3, "text": "hidden state 4: always distilled"},
        ],
    }
    write_json(folder / "selection.json", chosen)


def _write_training(folder: Path, method: str) -> None:
    steps = 60
    training = {
        "method": method,
        "rows": {"long": 4, "short": 24, "original": 4} if method != "cpt" else {"long": 8},
        "num_steps": steps,
        "seconds": 41.27,
        "tokens": steps * 8192,
        "tokens_per_second": 11910.4,
        "environment": {"torch": "2.13.0", "processor": "2 x EPYC"},
    }
    write_json(folder / "training.json", training)
    journal = Journal(folder / "metrics.jsonl")
    noise = np.random.default_rng(len(method))
    for step in range(1, steps + 1):
        values = {
            "train/long_loss": 2.5 + 0.4 * np.exp(-step / 15) + 0.03 * noise.standard_normal(),
            "train/grad_norm": 0.6 + 1.5 * np.exp(-step / 8) + 0.05 * noise.random(),
            "train/learning_rate": 5e-4,
        }
        if method != "cpt":
            values["train/short_distill_loss"] = (
                0.02 + 0.03 * np.exp(-step / 10) + 0.001 * noise.random()
            )
            values["train/short_to_long_loss"] = (
                0.01 + 0.02 * np.exp(-step / 12) + 0.001 * noise.random()
            )
        journal.append(values, step=step)
    journal.close()


def _write_samples(folder: Path, num_samples: int) -> None:
    for task in SHORT:
        lines = [
            {
                "id": f"{task}-{i}",
                "input": f"def f_{i}(x):\n    return x <{task}> & more",
                "outputs": ["x"],
            }
            for i in range(num_samples)
        ]
        write_lines(folder / "short" / f"{task}.jsonl", lines)
    for task in RULER:
        for length in LENGTHS:
            lines = [
                {
                    "id": f"{task}-{length}-{i}",
                    "input": "The grass is green. " * (length // 8)
                    + f"The number for key-{i} is 4821.",
                    "prefix": f"The special number for key-{i} is",
                    "outputs": ["4821"],
                }
                for i in range(num_samples)
            ]
            write_lines(folder / "ruler" / f"{task}-{length}.jsonl", lines)


def _write_scores(folder: Path, model: str, study: Study, num_samples: int) -> None:
    def entry(unit: str, path: str, chance: float) -> dict[str, Any]:
        scores = unit_scores(model, unit, num_samples)
        study.answers[model, unit] = scores
        prefix = unit.replace("@", "-")
        lines = [
            {
                "id": f"{prefix}-{i}",
                "expected": ["x"],
                "got": "x" if score else "<y> & z",
                "score": score,
                **({"depth": (i % 20) / 20} if path.startswith("ruler") else {}),
            }
            for i, score in enumerate(scores)
        ]
        write_lines(folder / "samples" / path, lines)
        return summary(lines, chance)

    similarity = SIMILARITY[model]
    scores = {
        "model": model,
        "checkpoint": f"c0ffee{len(model):010d}",
        "short": {
            task: entry(task, f"short-{task}.jsonl", chance) | {"capacity": CAPACITY[task]}
            for task, chance in SHORT.items()
        },
        "ruler": {
            str(n): {task: entry(f"{task}@{n}", f"ruler-{task}-{n}.jsonl", 0.0) for task in RULER}
            for n in LENGTHS
        },
        "similarity": {
            "per_layer": list(similarity),
            "last": similarity[-1],
            "mean": float(np.mean(similarity)),
            "attention_kl": KL[model],
            "drift": _drift([KL[model]] * NUM_LAYERS, model),
        },
        "nats_per_token": NATS[model],
        "bits_per_byte": NATS[model] / 2.1,
    }
    write_json(folder / "scores.json", scores)


def write_report(study: Study, folder: Path, **changes: Any) -> Path:
    """Write the study's report to a new folder; `changes` replace inputs."""
    folder.mkdir()
    given: dict[str, Any] = {
        "recipe": RECIPE,
        "profile": study.folders["profile"],
        "selection": study.folders["selection"],
        "students": study.students,
        "scores": study.scores,
        "data": study.folders["data"],
        "samples": study.folders["samples"],
        "made_by": MADE_BY,
    }
    inputs = read_inputs(**{**given, **changes})
    write(ReportConfig(title="A <title> & more"), inputs, folder)
    return folder
