"""Extend a language model's context window and restore its short-text skill (LongReD)."""

import logging

__version__ = "0.1.0"

# transformers imports torchao wherever it is installed, which then complains of kernels for other
# GPUs that nobody asked for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
