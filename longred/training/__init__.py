"""Trains students in a process of their own, so that a stop, a crash or a kill costs little.

Read in this order: `job` says what is trained, `loop` reads load, step, save, `step` holds the
losses of one optimizer step, `optimizer` the update, `persistence` what a trainer is made of,
`checkpoint` how that survives a crash, `result` what is left at the end, `stop` why a training ends
early, `launch` the parent's side.
"""
