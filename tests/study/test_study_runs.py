"""A whole study on the demo model: killed in the middle and continued, it has the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from longred.config import TrackingConfig
from longred.runs.mlflow_home import connect
from longred.runs.record import read_runs
from longred.store.artifacts import Store

STUDY: dict[str, Any] = {
    "title": "Two methods",
    "recipe": "demo",
    "seeds": [0],
    "slots": 2,
    "set": [
        "training.num_steps=2",
        "evaluation.short.num_samples=8",
        "evaluation.ruler.num_samples=2",
        "evaluation.ruler.lengths=[256, 512]",
        "evaluation.ruler.tasks=[niah_single_1]",
        "evaluation.similarity_tokens=2048",
        "profiling.num_tokens=2048",
    ],
    "panels": {
        "four": {
            "title": "Four times",
            "baseline": "longred-c",
            "variants": {"longred-c": {}, "cpt": {"set": ["training.method=cpt"]}},
        }
    },
    "claims": [
        {
            "text": "One restores more.",
            "ours": True,
            "tests": [{"measure": "similarity", "of": "four/longred-c", "above": "four/cpt"}],
        }
    ],
}


def command(folder: Path, store: str, *more: str) -> list[str]:
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return [sys.executable, "-m", "longred.cli", *more, str(file), "--store", str(folder / store)]


def run(folder: Path, store: str, *more: str) -> str:
    found = subprocess.run(
        command(folder, store, *more), capture_output=True, text=True, timeout=600, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def numbers(text: str) -> Any:
    """Return the scores of a study, without what differs between two executions."""
    values = json.loads(text)
    for panel in values["panels"]:
        for variant in panel["variants"]:
            for estimates in (variant["estimates"], variant["differences"]):
                estimates.pop("seconds", None)
            for cell in variant["cells"]:
                cell["training"].pop("seconds")
                cell.pop("run")
    return values["panels"], values["claims"][0]["tests"]


@pytest.mark.slow
def test_a_killed_study_continues_to_the_same_numbers(tmp_path: Path) -> None:
    run(tmp_path, "whole", "study")
    whole = run(tmp_path, "whole", "report", "--json")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command(tmp_path, "killed", "study"), stdout=log, stderr=log, start_new_session=True
        )
        until = time.monotonic() + 300
        trained = tmp_path / "killed" / "artifacts"
        while not list(trained.glob("training-*")) and time.monotonic() < until:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    partial = run(tmp_path, "killed", "study", "--dry-run", "--json")
    assert any(row["missing"] for row in json.loads(partial)["variants"].values())
    run(tmp_path, "killed", "study")
    assert numbers(run(tmp_path, "killed", "report", "--json")) == numbers(whole)
    store = Store(tmp_path / "killed")
    (artifact,) = store.artifacts.glob("study-*")
    assert {"index.html", "study.json", "table.md"} <= {path.name for path in artifact.iterdir()}
    assert [path.name for path in (tmp_path / "whole/artifacts").glob("study-*")] == [artifact.name]
    # Both runs share one data set.
    assert len(list(store.artifacts.glob("data-*"))) == 1
    client, experiment = connect(store.root, TrackingConfig())
    (group,) = client.search_runs([experiment], "tags.`longred.study` = 'two'")
    assert group.info.status == "FINISHED"
    assert "four/cpt/ruler" in group.data.metrics
    finished = [record for record in read_runs(store) if record.status == "finished"]
    parents = {
        client.get_run(str(record.mlflow_run_id)).data.tags.get("mlflow.parentRunId")
        for record in finished
    }
    assert parents == {group.info.run_id}
