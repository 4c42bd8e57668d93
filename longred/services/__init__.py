"""Local services beside a store: Prefect, MLflow, workers and the reaper.

`servers` starts, stops and lists them with the command lines and environments of `programs`.
`prefect_api` queries Prefect's server over HTTP. `temporary_server` is a Prefect server that ends
with its owner. `reap` closes the runs of dead processes, `doctor` checks the installation.
"""
