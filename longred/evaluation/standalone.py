"""Configuration of an evaluation outside of a pipeline, and of the held-out text that it uses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.config import DataConfig, EvaluationConfig
from longred.errors import ConfigError, MismatchError
from longred.evaluation.samples import tokenizer_sha256
from longred.models.load import load_config

MAX_TEXT_WINDOW = 256
"""Most tokens of short prompts and of rows of text, so that any model is evaluated quickly."""
NUM_HELD_OUT_TOKENS = 131072


def window_of(folder: Path) -> int:
    """Return the window of a model in tokens, from its own configuration."""
    return int(load_config(folder).max_position_embeddings)


def check_lengths(folders: dict[str, Path], lengths: Sequence[int], option: str) -> None:
    """Refuse lengths beyond the window of a model.

    Args:
        folders: folder of each model by name.
        lengths: tokens of prompt and answer.
        option: the command-line option that set the lengths.

    Raises:
        ConfigError: a length exceeds a model's window.
    """
    for name, folder in folders.items():
        window = window_of(folder)
        too_long = [length for length in lengths if length > window]
        if too_long:
            raise ConfigError(
                f"{option}: {', '.join(map(str, too_long))} tokens exceed the window of {name} "
                f"({window}, max_position_embeddings of {folder / 'config.json'}); choose "
                "shorter lengths, or evaluate them anyway with --beyond-window"
            )


def check_tokenizers(folders: Mapping[str, Path]) -> None:
    """Refuse models with different tokenizers, before samples are frozen for that of the first.

    Args:
        folders: folder of each model by name.

    Raises:
        MismatchError: a model has another tokenizer than the first, or none.
    """
    (first, base), *others = folders.items()
    for name, folder in others:
        if tokenizer_sha256(folder) != tokenizer_sha256(base):
            raise MismatchError(
                f"{name} ({folder}) has another tokenizer than {first} ({base}); compared models "
                "must share their tokenizer: evaluate these one by one, without --original"
            )


def evaluation_config(models: Sequence[Path], values: Mapping[str, Any]) -> EvaluationConfig:
    """Return the configuration of an evaluation from the command line.

    Args:
        models: folders of all models; short tasks and text fit the smallest window, prompts beyond
            the largest are truncated for all.
        values: fields of `EvaluationConfig`; without `ruler.lengths` there are no RULER tasks.

    Raises:
        ValidationError: a value is not valid.
    """
    window, ruler = min(map(window_of, models)), dict(values["ruler"])
    lengths = ruler["lengths"]
    if not lengths:
        ruler |= {"lengths": [window], "tasks": []}
    # Not validated yet: lengths may be anything.
    texts = map(str, lengths) if isinstance(lengths, list) else ()
    numbers = [int(text) for text in texts if text.isascii() and text.isdecimal()]
    return EvaluationConfig.model_validate(
        {
            "short_window": MAX_TEXT_WINDOW,
            **values,
            "ruler": ruler,
            "original_window": window,
            "target_window": max([*map(window_of, models), *numbers]),
        }
    )


def text_config(
    models: Sequence[Path], text: Path | None, seed: int, *, add_bos: bool | None = None
) -> DataConfig:
    """Return the data whose held-out part short tasks and likelihoods use.

    Args:
        models: folders of all models; the text fits the smallest window.
        text: a text file or folder; None for Python's standard library, whose held-out part the
            demo models were not trained on.
        seed: any integer.
        add_bos: whether documents start with BOS; None to do as the tokenizer does.
    """
    window = min(*map(window_of, models), MAX_TEXT_WINDOW)
    source: dict[str, Any] = {"name": "library", "kind": "library"}
    if text is not None:
        source = {"name": "text", "kind": "files", "path": str(text.resolve())}
    return DataConfig.model_validate(
        {
            "sources": [source],
            "num_tokens": 16 * window,
            "short_length": window // 2,
            "original_window": window,
            "target_window": 2 * window,
            "num_held_out_tokens": NUM_HELD_OUT_TOKENS,
            "validation_fraction": 0.1,
            "add_bos": add_bos,
            "seed": seed,
        }
    )
