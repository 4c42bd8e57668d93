"""Check that a deployment's schedule creates flow runs with the schedule's own parameters."""

from typing import Any

import pytest
from live import Pipeline, ask, until


@pytest.mark.slow
def test_a_cron_schedule_makes_flow_runs(pipeline: Pipeline) -> None:
    deployment = ask(f"{pipeline.api}/deployments/name/longred/full-pipeline")
    parameters = {"recipe": "demo", "overrides": ["seed=1"]}
    cron = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
    schedules = f"{pipeline.api}/deployments/{deployment['id']}/schedules"
    (made,) = ask(schedules, [{"schedule": cron, "active": True, "parameters": parameters}])
    question = {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "deployments": {"id": {"any_": [deployment["id"]]}},
    }

    def planned() -> list[dict[str, Any]]:
        return list(ask(f"{pipeline.api}/flow_runs/filter", question))

    try:
        runs = until(planned)
    finally:
        ask(f"{schedules}/{made['id']}", method="DELETE")
    assert all(run["auto_scheduled"] for run in runs)
    assert all(run["parameters"]["overrides"] == ["seed=1"] for run in runs)
    assert {run["expected_start_time"][11:16] for run in runs} <= {"00:00", "01:00"}
