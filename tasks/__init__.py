"""The stages as Prefect tasks: `stages` makes one task of each stage with the helper in `stage`.

`study` shows the runs of a study as task runs, `shards` the groups of shards that the data stage
tokenises.
"""
