"""The GPU check: measurement items, each in its own process, with one JSON line per measurement.

`items` lists the items, most valuable first; `run` starts them one after another until the
deadline; `child` runs one item in its process; `lines` writes, reads, compares and prints results;
`sizes` defines what is measured on each device and how many layers fit; `steps` times
micro-batches. Each other module measures one kind of item: `machine`, `smoke`, `products`,
`attention`, `buckets`, `update`, `step`, `variants`, `kl`, `suite`, `theirs`, `answers`,
`long_rows`.
"""
