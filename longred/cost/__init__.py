"""Estimates what a training costs from the model's shape alone, without weights, data or network.

`shape` derives parameters and layers from a model's configuration. From the shape, `flops` counts
the operations of a step by bucket, `memory` the peak memory of one process by part, and `passes`
the bytes that memory-bound kernels move. `speeds` lists the rates of known GPUs; `calibrate`
measures this machine instead. `plan` combines them into seconds and whether a training fits,
`advice` finds the settings that make it fit, `fit` refuses a training that cannot fit before it
starts. `recipe` plans all stages of a recipe. `machine` reads this machine's memory.

FLOPs, memory and passes follow the trainer's own micro-batches; tests/training/test_fake_step.py
runs these at full size on tensors without data and compares.
"""
