"""Whether a model is asked in a chat: one that was taught to end its turns, not a base model."""

import json
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.models.load import load_tokenizer

_TURNS = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]


def is_chat(setting: str, folder: Path) -> bool:
    """Return whether prompts go through a model's chat template.

    Many base models come with a template that nobody taught them. What tells them apart is how
    generation ends: a chat model's EOS is what its template writes behind an answer.

    Args:
        setting: `auto`, `true` or `false`.
        folder: the original model's folder.

    Raises:
        ConfigError: `true`, and the tokenizer has no template.
    """
    if setting == "false":
        return False
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        if setting == "true":
            raise ConfigError(
                f"evaluation.chat_template: true, and the tokenizer of {folder} has no chat "
                "template; use auto or false"
            )
        return False
    return setting == "true" or _ends_turns(tokenizer, folder)


def _ends_turns(tokenizer: Any, folder: Path) -> bool:
    text = str(tokenizer.apply_chat_template(_TURNS, tokenize=False))
    behind = text.rpartition("Two.")[2]
    return any(end in behind for end in _eos_tokens(tokenizer, folder))


def _eos_tokens(tokenizer: Any, folder: Path) -> list[str]:
    """Return the tokens that end a generation, by the model's own settings."""
    ids = [tokenizer.eos_token_id]
    path = folder / "generation_config.json"
    if path.is_file():
        listed = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids = listed if isinstance(listed, list) else [listed, *ids]
    return [tokenizer.convert_ids_to_tokens(int(i)) for i in ids if i is not None]
