"""Trains students in a process of their own, so that a stop, a crash or a kill costs little.

Read in this order: `job` says what is trained and `requirements` what that needs, `loop` reads
load, step, save, `trainer` is what there is between two steps, `student` is the model with its
savers of memory and time, `step` holds the losses of one optimizer step, `optimizer` the update and
`schedules` its rate, `persistence` what of a trainer is saved, `checkpoint` how that survives a
crash, `result` what is left at the end; `not_finite`, `spikes` and `stop` why a training ends
early, `launch` the parent's side.

Of several processes: `layout` says who computes what, `world` how they agree, `sharding` who holds
which rows of the weights, `own_rows` how each reads its own from a model's files, `tensor_files`
who writes and reads which rows of a checkpoint.
"""
