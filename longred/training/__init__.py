"""Trains students in a process of their own, so that a stop, a crash or a kill costs little.

Read in this order: `job` says what is trained, `loop` reads load, step, save, `step` holds the
losses of one optimizer step, `optimizer` the update, `checkpoint` what survives a crash, `stop` why
a training ends early, `launch` the parent's side.
"""
