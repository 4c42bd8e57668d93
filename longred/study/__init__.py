"""Studies: a grid of recipes and seeds, run as pipeline runs that share every stage they can.

`spec` is the file of a study, `cells` its runs: one variant with one seed. `execute` runs one cell
as a child process, `gather` reads what finished runs measured, `result` is the typed result,
`statistics` has the intervals and tests, `claims` the verdicts, `build` makes the artifact.
`tables`, `figures` and `page` show it. Packaged studies are in `packaged`.

Prefect is in `flows/study.py`, the commands in `longred/cli/study.py`.
"""
