"""A trained student as a folder that Hugging Face, vLLM, SGLang and llama.cpp load, and its proof.

write.py    the folder: weights, configuration in both dialects, tokenizer, model card
steps.py    which step's student: the last, a kept one, or the best
card.py     the model card, from the run's own measurements
check.py    reads the folder back with other programs and compares it with the trainer's model
probe.py    what runs there: a script of its own, with nothing of longred in it
serving.py  the commands that serve the folder, and what to know before
"""
