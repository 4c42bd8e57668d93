"""A stage alone: on an earlier run's settings, without rebuilding earlier stages."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from flows import stages
from longred.errors import ConfigError
from longred.runs.record import RunRecord, list_runs, load_config
from longred.store.artifacts import Store


@pytest.fixture
def earlier(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> RunRecord:
    """A run of the demo recipe with a seed of its own, whose artifacts are gone."""
    database = tmp_path_factory.getbasetemp() / "mlflow.db"
    monkeypatch.setenv("LONGRED_STORE", str(tmp_path))
    monkeypatch.setenv("LONGRED_TRACKING_URI", f"sqlite:///{database}")
    config = load_config("demo", ["seed=7", "selection.num_distill_layers=2"])
    record = RunRecord(
        id="20260101-000000-demo-aaaa",
        recipe="demo",
        overrides=["seed=7", "selection.num_distill_layers=2"],
        config=config.model_dump(mode="json"),
        digest="d",
        status="finished",
    )
    runs = Store(tmp_path).runs
    (runs / record.id).mkdir(parents=True)
    record.save(runs)
    return record


@pytest.mark.medium
@pytest.mark.usefixtures("prefect_server")
def test_what_comes_before_a_stage_must_be_there_else_there_is_no_run(
    earlier: RunRecord, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="data is not made yet"):
        stages.selection(run="latest", overrides=["selection.num_distill_layers=1"])
    # The refused settings do not become those of the latest run.
    assert list_runs(Store(tmp_path)) == [earlier.id]
    assert load_config("latest").selection.num_distill_layers == 2
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name={"any_": ["selection of latest"]})
        (flow_run,) = client.read_flow_runs(flow_run_filter=named)
        flow = client.read_flow(flow_run.flow_id)
    assert (flow.name, flow_run.state_name) == ("longred", "Failed")


@pytest.mark.usefixtures("earlier")
def test_an_unknown_run_is_refused_before_a_run_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="20250101-000000-x: no such run"):
        stages.report.fn(run="20250101-000000-x")
    assert len(list((tmp_path / "runs").iterdir())) == 1
