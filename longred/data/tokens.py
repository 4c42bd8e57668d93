"""Converts text to token ids: optional BOS, and never a control token from text."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from longred.errors import ConfigError, MismatchError, PreflightError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UINT16_IDS = 2**16


def leading_ids(tokenizer: "Tokenizer") -> list[int]:
    """Return the control tokens that a tokenizer puts before a text, usually BOS or nothing.

    What it puts behind a text is left out: text of a causal model goes on.
    """
    encoding = tokenizer.encode("a", add_special_tokens=True)
    pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return [id for id, _ in itertools.takewhile(lambda pair: pair[1], pairs)]


class TextTokenizer:
    """The fast tokenizer of a model folder, for raw text.

    Args:
        folder: Hugging Face folder with `tokenizer.json` and `tokenizer_config.json`.
        add_bos: whether every document starts with the BOS token; None to start it with what the
            tokenizer itself puts there.

    Attributes:
        vocab_size: number of ids, including added tokens.
        dtype: `uint16` if every id fits, else `uint32`.
        bos_token_id, eos_token_id: None if the tokenizer has none.

    Raises:
        PreflightError: the folder has no fast tokenizer or it cannot be read.
        ConfigError: `add_bos` is set, but the tokenizer has no BOS token.
    """

    def __init__(self, folder: Path, *, add_bos: bool | None) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            raw = path.read_bytes()
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise PreflightError(
                f"{folder}: has no {missing}; a fast tokenizer is needed"
            ) from None
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
            raise PreflightError(f"{path}: is not a fast tokenizer ({error})") from error
        if not isinstance(config, dict):
            config = {}
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.bos_token_id = self._id(config.get("bos_token"))
        self.eos_token_id = self._id(config.get("eos_token"))
        added = self._tokenizer.get_added_tokens_decoder()
        largest = max([self._tokenizer.get_vocab_size(with_added_tokens=True) - 1, *added])
        self.vocab_size = largest + 1
        self.dtype = "uint16" if self.vocab_size <= UINT16_IDS else "uint32"
        self._is_control = np.zeros(self.vocab_size, dtype=bool)
        unknown = self._id(config.get("unk_token"))
        control = [id for id, token in added.items() if token.special and id != unknown]
        self._is_control[control] = True
        if add_bos and self.bos_token_id is None:
            raise ConfigError(
                f"data.add_bos: the tokenizer of {folder} has no BOS token; set data.add_bos=false"
            )
        asked = [self.bos_token_id] if add_bos else []
        start = self.leading_ids() if add_bos is None else asked
        self._start = np.array(start, dtype=self.dtype)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Tokenise each text into an array of `dtype`; prepend the start of a document.

        Raises:
            MismatchError: the tokenizer produces a control token although that is disabled.
        """
        result = []
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = np.fromiter(encoding.ids, dtype=self.dtype, count=len(encoding))
            control = self._is_control.take(ids)
            if control.any():
                token = self._tokenizer.id_to_token(int(ids[control][0]))
                raise MismatchError(
                    f"the tokenizer turns text into the control token {token}; "
                    "it cannot be used for training text"
                )
            result.append(np.concatenate([self._start, ids]))
        return result

    def index_entry(self) -> dict[str, Any]:
        """Return the tokenizer's entry in the index of a data folder."""
        return {
            "sha256": self.sha256,
            "vocab_size": self.vocab_size,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        }

    def leading_ids(self) -> list[int]:
        """Return the control tokens that the tokenizer itself puts before a text."""
        return leading_ids(self._tokenizer)

    @property
    def starts_with_bos(self) -> bool:
        """Whether every document starts with the BOS token."""
        return self.bos_token_id is not None and self.bos_token_id in self._start

    def _id(self, token: Any) -> int | None:
        text = token.get("content") if isinstance(token, dict) else token
        found: int | None = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
        return found
