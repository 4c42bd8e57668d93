"""Pretrained models as folders and in memory.

`load` finds, loads, runs and saves models. It reads, checks and writes a model's files with
`folder`, downloads with `hub`, and knows differences between architectures from `architectures`;
`first_layers` loads as few layers as show them. `extension` writes the student's configuration for
a longer window, by the methods of `longred.method.rope`.

Part of the numerical core: packages beyond torch, transformers, accelerate and safetensors are
imported inside functions.
"""
