"""What a training costs, from its model's shape alone: no weights, data or network are needed.

The map: `named` (configurations of the recipes' models) → `shape` (parameters and layers) →
`flops` (of a step, by bucket), `memory` (of one process, by part, at its fullest moment) and
`passes` (bytes that are read and written) → `speeds` (of a known GPU, or measured by `calibrate`)
→ `plan` (seconds, and whether it fits) with `advice` (which setting would make it) → `recipe` (all
of it for a recipe). `fit` refuses before a start what a plan says cannot fit.

Memory, FLOPs and passes are those of the trainer's own micro-batches, which a test runs at full
size on tensors without data.
"""
