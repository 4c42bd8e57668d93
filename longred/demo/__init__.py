"""The tiny base model that ships with the package, its corpus and the script that trains it."""

from pathlib import Path


def model_path() -> Path:
    """Folder of the shipped base model: config, weights, tokenizer and model card."""
    return Path(__file__).resolve().parent / "model"
