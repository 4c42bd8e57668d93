"""The method as plain values, without a tensor library: what is computed, not how.

`methods` lists the training methods: which objective reads which bucket. `job` is one training,
every value checked. `schedules` holds learning-rate schedules, `layout` the division over
processes, `kept` the intermediate students to keep. `positions` makes skipped position ids,
`selection` chooses the distilled layers, `rope` has the RoPE scaling methods.
"""
