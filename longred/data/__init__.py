"""From text to training rows: what is read, how it is cut, and in which order it is trained on.

Two passes. The first tokenises shard by shard, anywhere and in any order; the second decides by
lengths alone what every block is made of, and then copies tokens.

    kinds.py, sources.py     what a recipe names    -> shards (files.py, hub.py, demo/sources.py)
    files.py, lines.py       text of a shard        -> documents; intake.py counts the bad rows
    tokenise.py, tokens.py   a shard                -> token ids, a table of documents, a record
    executors.py, cluster.py shards                 -> records: processes, or datatrove's executors;
                                                       counts.py says how far they are
    reading.py               records of a source    -> as much of it as its quotas need
    filling.py, packing.py   lengths                -> blocks: which stretch of which document
    copying.py               blocks and token ids   -> a bucket's file
    buckets.py               all of it              -> a data folder; layout.py is its format
    loader.py                a data folder          -> the rows of each step, resumable

A data folder holds `index.json`, `tokens/<bucket>.bin` and `held_out/<bucket>.bin` (raw tokens,
little-endian: block i starts at byte i * block_length * itemsize), `…/long.ends.npy` (uint64: every
position of `long.bin`, counted in tokens, at which a document ends; each block's end is one of
them), `held_out/documents.jsonl` (whole texts that stay out of training), `shards.jsonl` (what was
read, shard by shard), `quarantine.jsonl`, `contaminated.jsonl` and `tokenizer.json`.
"""
