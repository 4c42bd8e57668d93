"""The MLflow run over several runs: created once, found again, closed with results."""

import logging
from pathlib import Path

import pytest

from longred.config import TrackingConfig
from longred.runs.group import end_group, fill_group, open_group
from longred.runs.mlflow_home import connect

WORDS = {"name": "study demo", "note": "What it asks.", "tags": {"longred.study": "demo"}}


def test_a_group_is_created_once_and_closed_with_its_results(tmp_path: Path) -> None:
    tracking = TrackingConfig()
    first = open_group(tmp_path, tracking, key="k1", **WORDS)  # type: ignore[arg-type]
    assert first
    assert open_group(tmp_path, tracking, key="k1", **WORDS) == first  # type: ignore[arg-type]
    assert open_group(tmp_path, tracking, key="k2", **WORDS) != first  # type: ignore[arg-type]
    page = tmp_path / "index.html"
    page.write_text("<p>page</p>")
    fill_group(
        tmp_path, tracking, first, metrics={"4x/cpt/ruler": 12.5}, files=[page], note="Done."
    )
    end_group(tmp_path, tracking, first, "FINISHED")
    client, _ = connect(tmp_path, tracking)
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"4x/cpt/ruler": 12.5}
    assert run.data.tags["mlflow.note.content"] == "Done."
    assert run.data.tags["longred.study"] == "demo"
    assert [file.path for file in client.list_artifacts(first, "study")] == ["study/index.html"]
    # A study that is started again continues it.
    assert open_group(tmp_path, tracking, key="k1", **WORDS) == first  # type: ignore[arg-type]
    assert client.get_run(first).info.status == "RUNNING"


def test_a_server_that_is_away_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = TrackingConfig(uri="http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "longred"):
        assert open_group(tmp_path, tracking, key="k", **WORDS) == ""  # type: ignore[arg-type]
    assert "MLflow does not show the group" in caplog.text
