"""Training: the trainer runs in its own process, so a stop, a crash or a kill costs little.

`loop` is the training: load, step, save. `trainer` holds the state of one training and takes one
optimizer step: `load` loads student and teacher, `step` computes the losses of micro-batches,
`rows` the rows and positions that the models see, `balance` automatic weights, `optimizer` the
update, `host_state` keeps its state in host memory. `adapters` trains low-rank adapters instead of
the weights, `frozen` the weights of attention alone; `layers` replaces layers to save memory and
time.

`persistence` turns a trainer into a checkpoint and back, `checkpoint` makes checkpoints survive
crashes, `tensor_files` reads and writes split tensors, `result` writes students as model folders.

Before and around the steps: `handshake` compares training with the model's `own_code`, `machine`
configures torch and checks what a job needs, `checks` has the numerical checks (fp8, loss spikes,
NaN). With several processes `world` lets them agree, `sharding` divides the weights and
`weight_files` reads each process's rows of them.

`launch` starts the process of `__main__` and follows it; `stop` says when that process should end.
"""
