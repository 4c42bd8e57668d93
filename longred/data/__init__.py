"""From text to training rows: what is read, how it is cut, and in which order it is trained on.

    sources.py    text of a corpus           -> Document (id, path, text); bad rows are counted
    tokens.py     Document                   -> token ids, control tokens never from text
    packing.py    token ids of several texts -> blocks without padding, boundaries kept
    filling.py    one source                 -> its share of the long, short and original buckets
    buckets.py    all sources                -> a data folder
    loader.py     data folder                -> the rows of each step, resumable

A data folder holds `index.json`, `tokens/<bucket>.bin` and `held_out/<bucket>.bin` (raw tokens,
little-endian: block i starts at byte i * block_length * itemsize), `…/long.ends.npy` (uint64: every
position of `long.bin`, counted in tokens, at which a document ends; each block's end is one of
them), `held_out/documents.jsonl` (whole texts that stay out of training) and `quarantine.jsonl`.
"""
