"""How a prompt becomes tokens: the same way where it is measured and where it is asked."""

from collections.abc import Callable, Sequence
from typing import Any

from longred.errors import PreflightError

Counter = Callable[[Sequence[str]], list[int]]
"""Returns the number of tokens of each of many prompts, BOS included."""

_PROBE = "One of the special magic numbers for misty-anvil is: 1234567.\nVAR ABCDE = 12345 \n"


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a prompt, behind BOS where the tokenizer has one.

    Whether a tokenizer adds BOS by itself differs between models; training rows begin with it.
    """
    # Not verbose: whether a prompt fits the window is checked where it matters.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return list(ids) if bos is None else [int(bos), *ids]


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a prompt, BOS included."""
    return len(encode(tokenizer, text))


def token_counter(tokenizer: Any) -> Counter:
    """Return what counts the tokens of many prompts as `count_tokens` counts those of one.

    A fast tokenizer encodes them together on all cores, without what transformers builds around
    each. One that counts otherwise there, or has no such call, is asked for one prompt at a time.

    Raises:
        PreflightError: the tokenizer makes no tokens of text.
    """
    expected = count_tokens(tokenizer, _PROBE)
    num_bos = int(tokenizer.bos_token_id is not None)
    if expected == num_bos:
        raise PreflightError(
            f"{getattr(tokenizer, 'name_or_path', '') or 'tokenizer'}: makes no tokens of text, so "
            "no length can be measured; give a model folder with a complete tokenizer.json"
        )
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)

    def together(texts: Sequence[str]) -> list[int]:
        encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) + num_bos for encoding in encoded]

    if hasattr(backend, "encode_batch_fast") and together([_PROBE]) == [expected]:
        return together
    return lambda texts: [count_tokens(tokenizer, text) for text in texts]
