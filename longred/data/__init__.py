"""Data preparation: from text to the rows of each training step.

There are two passes. The first tokenises shard by shard, in any order and on any machine. The
second decides from document lengths alone what each block consists of, and then copies the tokens.

`buckets.prepare` runs both and is the entry point. From there down:

    buckets.py        calls estimate, executors, reading and writing, in this order
    estimate.py       says before a run whether the text suffices: rehearsal.py reads a small
                      corpus as the run will, sampling.py samples a large one
    advice.py         refuses too little text and finds the settings that would fit it
    executors.py      tokenises shards in local processes; cluster.py does so through datatrove
    tokenise.py       tokenises one shard with tokens.py; skips documents by decontamination.py
    reading.py        reads as many shards of a source as its quotas need; skips duplicates
    limit.py          ends the preparation if too many rows of a source cannot be used
    quotas.py         blocks that each source provides for each bucket; draws a document's bucket
    filling.py        assigns documents to buckets and packs blocks, by lengths
    writing.py        copies the tokens of the blocks and writes the data folder
    sources.py        kinds of source (files.py, hub.py and the demo's), divided into shards
    finding.py        lists the files of a folder, and those that no reader takes
    files.py          reads files, line by line with lines.py; cutting.py cuts long text files
    shards.py         the unit of work and its record; documents.py: documents and rejected rows
    layout.py         the format of a data folder, its index and its blocks

Two modules only read a data folder: loader.py gives the rows of each step, resumable; inspection.py
shows its content.

A data folder holds `index.json`, `tokens/<bucket>.bin` and `held_out/<bucket>.bin` (raw tokens,
little-endian: block i starts at byte i * block_length * itemsize), `…/long.ends.npy` (uint64,
ascending: every position of `long.bin`, in tokens, at which a document ends, including the end of
each block), `held_out/documents.jsonl` (whole texts that stay out of training), `shards.jsonl`
(what was read, shard by shard), `quarantine.jsonl`, `contaminated.jsonl` and `tokenizer.json`.

Imports inside functions keep commands fast (tokenizers, matplotlib) or belong to optional formats
(datasets, datatrove, fsspec, pyarrow, zstandard).
"""
