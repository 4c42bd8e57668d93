"""The one attention function that every model runs: causal, by document, by sliding window.

It is registered under a name of its own and without a mask function. transformers then builds no
mask and looks for no packed documents in `position_ids`, where it would take every skipped position
for the start of a new document.

    function.py   what transformers calls: refuses masks, tells the capture, calls a backend
    backends.py   the table of backends, and whether one can serve a model
    sdpa.py       torch's kernels, and the exact path for soft-capped logits
    flash.py      FlashAttention 2, 3 and 4
    documents.py  where packed documents begin and end
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
    "needs_of",
    "register",
]
