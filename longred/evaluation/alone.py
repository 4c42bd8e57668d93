"""What is asked of a model outside of a pipeline: its configuration, and text that nobody saw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.config import DataConfig, EvaluationConfig
from longred.errors import ConfigError
from longred.models.load import load_config, load_tokenizer

MAX_TEXT_WINDOW = 2048
NUM_HELD_OUT_TOKENS = 131072


def window_of(folder: Path) -> int:
    """Return the window of a model in tokens, by its own configuration."""
    return int(load_config(folder).max_position_embeddings)


def check_lengths(folders: dict[str, Path], lengths: Sequence[int], option: str) -> None:
    """Refuse lengths that a model was not made for; `option` is how they were given.

    Raises:
        ConfigError: a length exceeds a model's window.
    """
    for name, folder in folders.items():
        window = window_of(folder)
        too_long = [length for length in lengths if length > window]
        if too_long:
            raise ConfigError(
                f"{option}: {', '.join(map(str, too_long))} tokens exceed the window of {name} "
                f"({window}, max_position_embeddings of {folder / 'config.json'}); ask for "
                "shorter lengths, or say --beyond-window to ask all the same"
            )


def evaluation_config(
    original: Path, models: Sequence[Path], values: Mapping[str, Any]
) -> EvaluationConfig:
    """Return the configuration of an evaluation by its command line.

    Args:
        original: folder of the original model, whose window short tasks fit.
        models: folders of all models; what exceeds the largest window is cut for all of them.
        values: fields of `EvaluationConfig`; no lengths ask no RULER.
    """
    window, ruler = window_of(original), dict(values["ruler"])
    lengths = ruler["lengths"]
    if not lengths:
        ruler |= {"lengths": [window], "tasks": []}
    return EvaluationConfig.model_validate(
        {
            **values,
            "ruler": ruler,
            "original_window": window,
            "target_window": max([*map(window_of, models), *_numbers(lengths)]),
        }
    )


def _numbers(lengths: Any) -> list[int]:
    """Return what of a setting that was not checked yet can be compared."""
    return [n for n in lengths if isinstance(n, int)] if isinstance(lengths, list) else []


def text_config(original: Path, text: Path | None, seed: int) -> DataConfig:
    """Return the data that short tasks and likelihoods are made of: what is held out of them.

    Args:
        original: folder of the original model.
        text: a file or folder of text; Python's standard library if None, of which the demo's
            models never saw the part that is held out.
        seed: any integer.
    """
    window = min(window_of(original), MAX_TEXT_WINDOW)
    source: dict[str, Any] = {"name": "library", "kind": "library"}
    if text is not None:
        source = {"name": "text", "kind": "files", "path": str(text.resolve())}
    short_length = window // 2
    return DataConfig.model_validate(
        {
            "sources": [source],
            "num_tokens": 16 * window,
            "short_length": short_length,
            "original_window": window,
            "target_window": 2 * window,
            "num_held_out_tokens": NUM_HELD_OUT_TOKENS,
            "validation_fraction": 0.1,
            "add_bos": load_tokenizer(original).bos_token_id is not None,
            "seed": seed,
        }
    )
