"""The GPU check: items of measurements, each in processes of its own, a JSON line after each.

The map: `items` is the table, in order of worth; `run` starts one item after another against the
deadline; `child` is an item's side; `lines` writes, reads, compares and shows results; `sizes` says
what is measured on which device, and how deep a model fits. One file a kind of item: `machine`,
`smoke`, `products`, `attention`, `buckets`, `update`, `step`, `variants`, `kl`, `suite`, `theirs`,
`answers`, `long_rows`.
"""
