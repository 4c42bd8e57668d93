"""Measure a micro-batch of one 128K row, with next-token loss only, at a depth that fits."""

from gpu.child import Check, Skip
from gpu.sizes import job_at, model_shape, planned_batch, scale_of, speeds_of
from gpu.steps import measure_batch, trainer_at
from longred.cost.plan import plan_training


def measure(check: Check) -> None:
    """Run the micro-batch twice; the first run is a warm-up."""
    scale = scale_of(check)
    preset, depths = scale.long_preset, (scale.shallow, max(1, scale.shallow // 2))
    for layers in depths:
        job = job_at(check, layers, {}, preset=preset)
        shape, lengths = model_shape(scale.model, layers), {"long": preset.target_window}
        if plan_training(shape, job, lengths, speeds_of(check)).fits:
            break
    else:
        raise Skip("according to the plan, no depth fits this device")
    with trainer_at(check, layers, {}, preset=preset) as (trainer, batches):
        check.line(
            str(preset.target_window),
            settings={"layers": layers},
            measured=measure_batch(trainer, batches["long"], repeats=1),
            planned=planned_batch(check, layers, job, "long", lengths),
        )
