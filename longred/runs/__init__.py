"""A run: its record on disk, the open run in this process, and its mirror in MLflow.

`record` is `run.json`; `session` opens a run and makes its stages; `scope` says which stages are
made, reused or left; `follower` sends the run to MLflow in the background by way of `mirror`;
`mlflow_home` says where MLflow is, `system_metrics` measures the machine.
"""
