"""How MLflow presents a run: its name, description, source, first metrics and page."""

import contextlib
import getpass
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import longred
from longred.runs.record import RunRecord

NAME_CHARACTERS = 120
NOTE_CHARACTERS = 7500
"""MLflow's limit for a tag is 8,000."""

HEADLINES = {
    "capacity/short": "1_short_average_percent",
    "retention/short": "2_short_retention_percent",
    "ruler/average": "3_ruler_average_percent",
    "similarity/last": "4_similarity_cosine",
    "held_out/nats_per_token": "5_held_out_nats_per_token",
}
"""Metric of the report → a copy of it whose name has the unit and sorts before all others.

MLflow shows metrics in alphabetical order; RULER's is the one at the longest length.
"""

VIEW = "?workflowType=machine_learning"
"""Query of MLflow's pages for trained models; without it they show traces of applications."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Make MLflow open the experiment at its list of runs."""


def runs_page(page: str, experiment_id: str) -> str:
    """Return the URL of the list of runs on an MLflow server."""
    return f"{page}/#/experiments/{experiment_id}/runs{VIEW}"


def run_page(page: str, experiment_id: str, mlflow_run_id: str) -> str:
    """Return the URL of one run on an MLflow server."""
    return f"{page}/#/experiments/{experiment_id}/runs/{mlflow_run_id}{VIEW}"


def run_name(run: RunRecord) -> str:
    """Return the name of a run in MLflow: what differs from its recipe, then method and id.

    The last change comes first: a run on an earlier run's settings repeats that one's changes.
    """
    changes = [
        change if key.count(".") != 1 else change.partition(".")[2]
        for change in reversed(run.overrides)
        if not (key := change.partition("=")[0]).startswith(("store.", "tracking.", "training.met"))
    ]
    first = [part for part in (run.part, " ".join(changes)) if part]
    method = str(run.config["training"]["method"])
    rest = f"{method} · {run.id}"
    text = " · ".join(first)
    space = NAME_CHARACTERS - len(rest) - 3
    if len(text) > space:
        text = text[: space - 1] + "…"
    return f"{text} · {rest}" if text else rest


def note(run: RunRecord, report: Path | None = None) -> str:
    """Return the description of a run in Markdown.

    Args:
        run: the run.
        report: folder of its report, whose result table is included.
    """
    parts = []
    if report is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            parts.append((report / "table.md").read_text(encoding="utf-8").strip())
    if run.error:
        parts.append(f"**{run.status}**: {run.error}")
    parts.append(f"`longred run {' '.join([run.recipe, *run.overrides])}`")
    if run.origin:
        parts.append(f"{run.part or 'started'} from run `{run.origin}`")
    if run.prefect_url:
        parts.append(f"[flow run in Prefect]({run.prefect_url})")
    text = "\n\n".join(parts)
    if len(text) <= NOTE_CHARACTERS:
        return text
    cut = text[:NOTE_CHARACTERS].rpartition("\n")[0]
    return f"{cut}\n\n(cut; the whole is in the artifact report/table.md)"


def headlines(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return copies of the journal lines of `HEADLINES` under their other names.

    Args:
        lines: lines of a journal with the scores of a run's own method.

    Returns:
        At most one line per name, the one of the largest step.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        name = HEADLINES.get(line["key"])
        if name is not None and (name not in newest or line["step"] >= newest[name]["step"]):
            newest[name] = line
    return [{**line, "key": name, "step": 0} for name, line in sorted(newest.items())]


def source_tags(run: RunRecord) -> dict[str, str | None]:
    """Return the tags that say from which recipe, code and user a run comes."""
    is_file = "/" in run.recipe or run.recipe.endswith((".yaml", ".yml"))
    return {
        "mlflow.source.name": run.recipe if is_file else f"longred/recipes/{run.recipe}.yaml",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit(),
        "mlflow.user": _user(),
        "longred.version": longred.__version__,
    }


@cache
def commit() -> str | None:
    """Return the commit of the clone that holds this code; None if it is not a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _user() -> str | None:
    """Return the name of the user; None if the process's user has none, as in containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None
