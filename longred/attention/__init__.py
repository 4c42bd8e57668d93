"""Attention of all models: causal, by document, by sliding window, with soft-capped logits.

It is registered with transformers' attention interface under its own name and without a mask
function. transformers then builds no mask and does not search `position_ids` for packed documents,
where it would take every skipped position for the start of a document.

    function.py   what transformers calls: refuses masks, captures inputs, calls a backend
    backends.py   the table of backends, and the choice of one for a model
    sdpa.py       backend sdpa: torch's kernels, and the exact path for soft-capped logits
    flash.py      backends FlashAttention 2, 3 and 4
    kernels.py    the order in which sdpa tries torch's kernels on a GPU, and the loaded cuDNN
    reindexed.py  attention at other positions: SelfExtend and dual chunk attention
    heads.py      sizes of heads
    documents.py  bounds of packed documents
    probe.py      runs sdpa once to name the kernels that a device really runs
"""
