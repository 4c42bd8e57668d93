"""Parts of decoder layers that save memory or time in training; each changes a model in place.

`masters` makes linear layers cast their float32 weights instead of holding bfloat16 copies; `fp8`
makes them multiply in 8-bit floats. `fused` computes norms and RoPE, and by `gated_mlp` the MLPs,
with functions that `compiling` compiles on a GPU; `compiling` also compiles whole layers instead.
`mlp_tiles` computes an MLP in pieces. `activations` chooses what is recomputed in the backward
pass. Order of calls: `longred.training.student.load_student`.
"""
