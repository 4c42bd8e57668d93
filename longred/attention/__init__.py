"""The one attention function that every model runs: causal, by document, by sliding window.

It is registered under a name of its own and without a mask function. transformers then builds no
mask and looks for no packed documents in `position_ids`, where it would take every skipped position
for the start of a new document.

    function.py   what transformers calls: refuses masks, tells the capture, calls a backend
    backends.py   the table of backends, and whether one can serve a model
    sdpa.py       torch's kernels, and the exact path for soft-capped logits
    kernels.py    which of torch's kernels are tried on a GPU, in which order
    varlen.py     torch's one call for documents and windows on a GPU
    flash.py      FlashAttention 2, 3 and 4
    documents.py  where packed documents begin and end
    sequence.py   rows whose tokens are divided over processes
    probe.py      which kernels really run on a device
    cudnn.py      which cuDNN is loaded
"""

from longred.attention.backends import BACKENDS, Backend, Needs, choose_backend, needs_of
from longred.attention.documents import Bounds, Documents, document_bounds, find_documents
from longred.attention.function import (
    ATTENTION_NAME,
    Capture,
    Captured,
    attend,
    guard,
    register,
)
from longred.attention.kernels import kernel_order
from longred.attention.probe import kernel_report
from longred.attention.sdpa import Rules, attend_exactly, attend_sdpa

__all__ = [
    "ATTENTION_NAME",
    "BACKENDS",
    "Backend",
    "Bounds",
    "Capture",
    "Captured",
    "Documents",
    "Needs",
    "Rules",
    "attend",
    "attend_exactly",
    "attend_sdpa",
    "choose_backend",
    "document_bounds",
    "find_documents",
    "guard",
    "kernel_order",
    "kernel_report",
    "needs_of",
    "register",
]
