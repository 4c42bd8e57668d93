"""Says how many training tokens a text can give."""

from collections.abc import Callable
from pathlib import Path

from longred.config import DataConfig
from longred.data.advice import (
    documents_of,
    largest_num_tokens,
    most_that_fit,
)
from longred.data.estimate import is_filled, refuse_too_little, small_sources
from longred.data.quotas import least_num_tokens, not_enough_text, source_quotas
from longred.data.rehearsal import rehearse
from longred.data.sampling import sample_source
from longred.data.sources import check_sources, shards_of
from longred.data.tokens import TextTokenizer

MAX_GROWTH = 8
"""Most tokens per stated byte: compressed text is larger than its file."""


def most_tokens(
    config: DataConfig, tokenizer_folder: Path, settle: Callable[[DataConfig], DataConfig]
) -> int:
    """Return about the most training tokens for which the text fills the buckets.

    Exact for local text of up to EXACT_BYTES in all; else by a sample, and on the safe side.

    Args:
        config: the recipe's data section, with windows and seed filled in; its `num_tokens` does
            not count.
        tokenizer_folder: Hugging Face folder of the model.
        settle: sets what follows from `num_tokens` in a section.

    Raises:
        ConfigError: the text does not even fill one block of each bucket.
        PreflightError: a source or the tokenizer cannot be read.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    check_sources(config)
    least = settle(config.model_copy(update={"num_tokens": least_num_tokens(config)}))
    numbers = range(len(config.sources))
    stated = sum(s.num_bytes for number in numbers for s in shards_of(config, number))
    # A token has at least one byte, and compressed text at most this many times its size.
    wide = config.model_copy(update={"num_tokens": max(least.num_tokens + 1, MAX_GROWTH * stated)})
    if exact := small_sources(config):
        with rehearse(wide, tokenizer_folder, exact) as rehearsal:
            found = most_that_fit(wide, documents_of(rehearsal.readings), settle)
    else:
        samples = [sample_source(wide, number, tokenizer) for number in numbers]

        def works(changed: DataConfig) -> bool:
            quotas = source_quotas(changed)
            return all(
                is_filled(changed, quotas[source.name], sample)
                for source, sample in zip(config.sources, samples, strict=True)
            )

        found = largest_num_tokens(wide, works)
    if found is None:
        refuse_too_little(least, tokenizer_folder)
        raise not_enough_text(["the buckets need documents of a whole block each"], "By a sample: ")
    return found
