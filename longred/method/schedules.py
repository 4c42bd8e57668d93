"""The learning rate of every step, as pure functions of the step: nothing to save or restore.

Steps count from 1. Every schedule rises linearly to `learning_rate` over the first `warmup_steps`;
schedules that fall reach `min_learning_rate` in the last step. Sources: cosine arXiv 1608.03983;
warm-up, stable, decay (wsd) 2404.06395, with the linear decay of 2405.18392.
"""

import math

from longred.method.job import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step, counted from 1."""
    peak, warmup_steps = settings.learning_rate, settings.warmup_steps
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if settings.schedule == "constant":
        fall = 0.0
    elif settings.schedule == "cosine":
        done = _done_share(step, settings.num_steps - warmup_steps, settings)
        fall = (1.0 - math.cos(math.pi * done)) / 2
    else:
        fall = _done_share(step, settings.decay_steps, settings)
    return peak - fall * (peak - settings.min_learning_rate)


def _done_share(step: int, length: int, settings: TrainingSettings) -> float:
    """Return the share of the last `length` steps that is done after this one."""
    return max(0.0, 1.0 - (settings.num_steps - step) / length)
