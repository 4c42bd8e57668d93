"""Exports a trained student as a folder that Hugging Face, vLLM, SGLang and llama.cpp load.

`longred export` calls `write.py`, which finds the student and writes weights, configuration,
tokenizer and the model card from `card.py`. With --check, `check.py` loads the folder with other
versions of transformers, by running `probe.py` in separate processes, and compares the results with
the trained model. `serving.py` returns the commands that serve the folder.
"""
