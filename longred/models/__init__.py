"""Pretrained models as folders and in memory.

`load` finds, loads and saves models, `folder` reads, checks and writes a model's files, `hub` asks
whether the hub answers, `architectures` lists what is supported, `extension` writes the student's
configuration for a longer window.
"""
