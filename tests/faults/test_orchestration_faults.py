"""Kill flows, workers and servers: no trainer survives, no checkpoint is lost, no run stays open.

The tests run in order and share one pipeline: the first builds the stages before training, and the
others reuse them.
"""

import signal
import time
from pathlib import Path

import pytest
from live import LONG, SMALL, Pipeline, ask, until
from mlflow import MlflowClient

from longred.services import reap
from longred.services.prefect_api import unfinished_flow_runs
from longred.services.temporary_server import temporary_server
from longred.store.artifacts import Store

pytestmark = pytest.mark.slow


def close_everything(pipeline: Pipeline) -> list[str]:
    """Run the reaper now."""
    warnings: list[str] = []
    done = reap.reap(pipeline.store, lambda: pipeline.api, warnings.append)
    assert warnings == []
    return done


def test_sigterm_to_the_flow_saves_and_ends_its_trainer(pipeline: Pipeline) -> None:
    flow = pipeline.start("run", "demo", *LONG)
    trainer = pipeline.trainer()
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(300) == 128 + signal.SIGTERM, pipeline.output()
    trainer.wait_until_gone()
    assert trainer.saved()[-1] == trainer.steps()[-1]
    record = pipeline.record()
    assert (record.status, record.stages[-1].status) == ("stopped", "stopped")
    pipeline.wait_for_state(str(record.prefect_flow_run_id), "Crashed")
    assert "progress is saved" in pipeline.output()


def test_a_killed_flow_leaves_no_trainer_and_no_open_run_and_the_next_goes_on(
    pipeline: Pipeline,
) -> None:
    flow = pipeline.start("run", "demo", *LONG)
    trainer = pipeline.trainer()
    before = trainer.saved()[-1]
    assert trainer.steps(since=trainer.identity[1])[0] == before + 1
    client = MlflowClient(pipeline.mlflow)
    child = until(lambda: pipeline.record().stages[-1].mlflow_run_id)
    flow.kill()
    flow.wait()
    trainer.wait_until_gone()
    assert trainer.saved()[-1] == trainer.steps()[-1] > before
    record = pipeline.record()
    flow_run = str(record.prefect_flow_run_id)
    # The background reaper may act first; together the two close everything.
    close_everything(pipeline)
    assert until(lambda: pipeline.state(flow_run) == "Crashed")
    assert pipeline.record().status == "lost"
    assert until(lambda: client.get_run(child).info.status == "KILLED")
    assert client.get_run(str(record.mlflow_run_id)).info.status == "KILLED"
    assert unfinished_flow_runs(pipeline.api) == []


def test_the_rest_queue_survives_its_worker_and_a_cancelled_run_without_one_ends(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = pipeline.record().id
    first = pipeline.run_deployment("training", run=earlier)
    trainer = pipeline.trainer()
    before = trainer.saved()
    waiting = pipeline.run_deployment(
        "training", run=earlier, overrides=["training.num_steps=2", "training.warmup_steps=0"]
    )
    pipeline.kill_service("worker")
    pipeline.up()
    done = trainer.steps()[-1]
    until(lambda: trainer.steps()[-1] > done + 2)
    time.sleep(6)  # three polling intervals of a worker
    assert pipeline.state(first) == "Running"
    assert pipeline.state(waiting) in ("Scheduled", "Late", "Pending")
    assert ask(f"{pipeline.api}/flow_runs/{waiting}")["start_time"] is None
    pipeline.cancel(first)
    monkeypatch.setattr(reap, "CANCEL_SECONDS", 0.0)
    assert any("SIGTERM" in line for line in close_everything(pipeline))
    trainer.wait_until_gone()
    assert trainer.saved() > before
    until(lambda: pipeline.state(first) == "Cancelled")
    pipeline.wait_for_state(waiting, "Completed")
    assert pipeline.record().stages[-1].status in ("ran", "stale")


def test_a_cancelled_flow_run_of_a_worker_saves_and_ends_its_trainer(pipeline: Pipeline) -> None:
    flow_run = pipeline.run_deployment(
        "training", run=pipeline.record().id, overrides=LONG[len(SMALL) :]
    )
    trainer = pipeline.trainer()
    before = trainer.saved()
    pipeline.cancel(flow_run)
    until(lambda: pipeline.state(flow_run) == "Cancelled")
    trainer.wait_until_gone()
    assert trainer.saved() > before
    assert trainer.saved()[-1] == trainer.steps()[-1]


def test_both_servers_may_be_away_while_a_training_goes_on(pipeline: Pipeline) -> None:
    flow = pipeline.start("run", "demo", *SMALL, "training.num_steps=40", "--only", "training")
    trainer = pipeline.trainer()
    pipeline.kill_service("prefect")
    pipeline.kill_service("mlflow")
    away = time.time()
    until(lambda: len(trainer.steps(since=away)) > 10)
    pipeline.up()
    assert flow.wait(300) == 0, pipeline.output()
    record = pipeline.record()
    pipeline.wait_for_state(str(record.prefect_flow_run_id), "Completed")
    stage = record.last_attempts()["training/longred-c"]
    client = MlflowClient(pipeline.mlflow)

    def shown() -> list[int]:
        history = client.get_metric_history(str(stage.mlflow_run_id), "train/loss")
        return sorted(point.step for point in history)

    # The reaper uploads what a busy server did not accept at the end of the run.
    assert until(lambda: len(found := shown()) >= 40 and found) == list(range(1, 41))


def test_without_prefect_for_good_the_student_is_kept_and_the_next_run_skips_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    command = ("run", "demo", *SMALL, "training.num_steps=20", "--only", "training")
    with temporary_server(tmp_path) as server:
        server.wait()
        # Fewer retries than the default five, which would take a minute per request.
        few = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
        flow = pipeline.start(*command, api=server.url, environment=few)
        trainer = pipeline.trainer()
    assert trainer.is_alive()
    assert flow.wait(300) != 0
    digest = trainer.work.name
    assert Store(pipeline.root).find("training", digest)
    assert not trainer.is_alive()
    assert pipeline.run(*command) == 0, pipeline.output()
    stage = pipeline.record().last_attempts()["training/longred-c"]
    assert (stage.digest, stage.status) == (digest, "skipped")
