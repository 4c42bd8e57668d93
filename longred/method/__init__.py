"""The method as plain values: what is computed, not how.

Read `methods` first: the table of training methods, each a list of objectives on buckets. `job` is
one training as plain values; the recipe's `training` section inherits its fields, and `values` has
the types of both. `schedules` computes learning rates, `positions` draws skipped position ids,
`selection` chooses the distilled layers, `rope` rescales RoPE, `factor_search` searches for its
factors, `layout` divides a training over processes, `kept` names intermediate students.

Part of the numerical core: no pydantic, and no files but `positions` and `factor_search` import
numpy or torch.
"""
