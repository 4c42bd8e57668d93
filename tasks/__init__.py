"""The stages as Prefect tasks: `stages` makes one task of each stage with the helper in `stage`.

`shards` shows the groups of shards that the data stage tokenises as mapped task runs.
"""
