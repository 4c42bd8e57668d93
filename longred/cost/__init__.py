"""What a training costs, from its model's shape alone: no weights are loaded.

The map: `shape` (parameters and layers) → `flops` (of a step, by bucket) and `memory` (of one
process, by part) → `speeds` (of a known GPU, or measured by `calibrate`) → `plan` (seconds, and
whether it fits) with `advice` (which setting would make it) → `recipe` (all of it for a recipe).
"""
