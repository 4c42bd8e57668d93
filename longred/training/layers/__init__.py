"""Linear layers and blocks that save memory or time in training.

`masters` are linear layers with float32 weights that compute in bfloat16, `fp8` in float8;
`fused` and `compiling` are compiled parts of a block, `mlp_tiles` computes an MLP in pieces,
`activations` decides what is recomputed in the backward pass.
"""
