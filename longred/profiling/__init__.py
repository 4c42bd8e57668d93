"""How far rescaling moves a model, measured on text.

`drift` runs both models side by side and compares attention and hidden states of each layer;
`sweep` repeats that over rescalings. `attention_kl` streams the KL that `drift` measures, in plain
torch or, on CUDA, by the kernel in `attention_kl_triton`. `factors` searches for longrope's factors
by the perplexity of `needles`; `passage` reads one text at rising positions.
"""
