"""The local services beside a store: Prefect, MLflow, workers and the reaper.

`servers` starts, stops and lists them, `programs` says with which commands and environment;
`prefect_api` asks Prefect's server over HTTP, `temporary_server` is one that ends with its owner;
`reap` closes dead runs, `doctor` checks the installation.
"""
