"""The small base model that ships with the package, its corpus and its training.

`pretrain` trains the model: `rows` builds its batches from the `corpus` (Python's standard library)
and the exercises of `skills`, whose templates are in `wording`, and encodes them with `tokenizer`.
`measure` scores the model and writes its card. `sources` offers the corpus and the exercises as
data sources of a recipe (`library` and `practice`).
"""

from pathlib import Path


def model_path() -> Path:
    """Return the folder of the shipped base model: config, weights, tokenizer and model card."""
    return Path(__file__).resolve().parent / "model"
