"""A stage as a Prefect task: reused work is shown as Skipped, only lost processes are retried."""

import signal
import time
from pathlib import Path

import pytest
from prefect import flow
from prefect.artifacts import Artifact as PrefectArtifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from longred.errors import (
    ConfigError,
    LongredError,
    LostProcessError,
    NonFiniteLossError,
    Stopped,
    StorageError,
)
from longred.progress import Progress
from longred.runs.record import load_config, load_run, newest_runs
from longred.runs.session import open_run
from longred.store.artifacts import Artifact, Store
from tasks import stage
from tasks.stage import stage_task

attempts: list[str] = []
errors: list[LongredError] = []


def make_toy(part: str, *, store: Store, on_progress: Progress) -> Artifact:
    """Build a small artifact, after raising the errors of the test."""

    def fill(folder: Path, work: Path) -> None:
        attempts.append(part)
        if errors:
            raise errors.pop(0)
        on_progress(1, 2, "half done")
        (folder / "part.txt").write_text(part)

    return store.build("data", {"part": part}, {}, fill)


toy = stage_task(make_toy, "data/{part}")


@flow(name="toy-flow")
def toy_flow(store: str, tracking: str, part: str) -> tuple[str, Artifact]:
    config = load_config("demo", [f"store.path={store}", f"tracking.uri={tracking}"])
    with open_run(config, "demo", prefect_flow_run_id=flow_run.id) as run:
        artifact = toy(part)
    return run.record.id, artifact


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests, because creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.getbasetemp() / 'mlflow.db'}"


@pytest.fixture
def _start_over() -> None:
    """Reset the state of earlier tests."""
    attempts.clear()
    errors.clear()


def task_states(flow_run_id: str) -> list[tuple[str, str, str]]:
    """Return (name, state type, state name) of a flow run's tasks, as the server knows them."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=10)
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id={"any_": [flow_run_id]}),
            task_run_filter=TaskRunFilter(),
        )
    return [(r.name, str(r.state_type.value), str(r.state_name)) for r in runs]


@pytest.mark.medium
@pytest.mark.usefixtures("prefect_server", "_start_over")
def test_reused_work_is_shown_as_skipped_and_still_returned(tmp_path: Path, tracking: str) -> None:
    store = str(tmp_path / "store")
    _, first = toy_flow(store, tracking, "a")
    run_id, second = toy_flow(store, tracking, "a")
    assert attempts == ["a"]
    assert (first.reused, second.reused) == (False, True)
    assert second.folder.joinpath("part.txt").read_text() == "a"
    record = load_run(Store(store), run_id)
    (stage,) = record.stages
    assert stage.status == "skipped"
    assert record.prefect_flow_run_id
    states = wait_for_states(record.prefect_flow_run_id)
    assert [(kind, name) for _, kind, name in states] == [("COMPLETED", "Skipped")]
    assert states[0][0] == "data a"
    note = PrefectArtifact.get("longred-stage-data-a")
    assert note
    assert first.digest in str(note.data)


def wait_for_states(flow_run_id: str) -> list[tuple[str, str, str]]:
    """Return the task runs once the server has recorded how they ended."""
    deadline = time.monotonic() + 120
    states = task_states(flow_run_id)
    while time.monotonic() < deadline and not (
        states and all(k == "COMPLETED" for _, k, _ in states)
    ):
        time.sleep(0.3)
        states = task_states(flow_run_id)
    return states


@pytest.mark.parametrize(
    ("error", "num_attempts"),
    [
        (LostProcessError("the trainer was killed by signal 9"), 2),
        (Stopped(signal.SIGTERM), 2),
        (Stopped(signal.SIGINT), 1),
        (StorageError("disk full"), 1),
        (NonFiniteLossError("NaN"), 1),
        (ConfigError("data.num_tokens: too few"), 1),
    ],
)
@pytest.mark.usefixtures("prefect_server", "_start_over")
def test_only_lost_processes_and_preemptions_are_tried_again(
    tmp_path: Path, tracking: str, error: LongredError, num_attempts: int
) -> None:
    errors.append(error)
    if num_attempts == 1:
        with pytest.raises(type(error)):
            toy_flow(str(tmp_path), tracking, "b")
    else:
        toy_flow(str(tmp_path), tracking, "b")
    assert len(attempts) == num_attempts
    record = next(newest_runs(Store(tmp_path)))
    assert len(record.stages) == num_attempts
    assert record.status == ("finished" if num_attempts == 2 else record.stages[-1].status)


def test_a_server_that_is_away_does_not_hold_up_a_stage() -> None:
    """Nothing answers at the URL, and Prefect's client retries for a minute."""
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(stage, "END_SECONDS", 0.2)
        progress = stage.StageProgress("training/cpt")
        patch.setattr(progress, "_logged", float("inf"))  # no logging: there is no run to log to
        started = time.monotonic()
        with progress:
            for step in range(1000):
                progress(step, 1000, "on the way")
        assert time.monotonic() - started < 30
