"""Runs: their record on disk, the open run of this process, and their mirror in MLflow.

`session.open_run` opens a run. `Run.make` executes a stage with the run's `RunStore`, whose `build`
consults the `scope` and then calls `Store.build`. `record` reads and writes `run.json`. `follower`
calls `mirror` in the background to send the run to MLflow, with the names and texts of
`description`; `mlflow_home` connects to MLflow.
"""
