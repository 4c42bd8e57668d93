"""Extend a language model's context window and restore its short-text skill (LongReD)."""

import logging
import os

__version__ = "0.1.0"

# Read when torch is loaded. By default OpenMP's threads spin where they wait for each other: beside
# any other busy process on the same cores a small model then runs tens of times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# transformers imports torchao wherever it is installed, which then complains of kernels for other
# GPUs that nobody asked for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
