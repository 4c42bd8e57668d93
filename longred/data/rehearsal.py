"""Prepares small corpora in a temporary folder, up to the choice of the blocks.

So the answer is the one that preparing the data will give: the same code reads, tokenises, skips
duplicates, draws buckets and packs.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from longred.config import DataConfig
from longred.data.quotas import source_quotas
from longred.data.reading import Reading
from longred.data.shards import Shard
from longred.data.tokenise import Job, tokenise_shard


@dataclass(slots=True)
class Rehearsal:
    """The sources of a rehearsal, as far as they had to be read.

    Attributes:
        readings: one per source.
        text_bytes: size of the text that each one read.
    """

    readings: list[Reading] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)


@contextmanager
def rehearse(
    config: DataConfig, tokenizer_folder: Path, numbers: Sequence[int]
) -> Iterator[Rehearsal]:
    """Read some sources and choose their blocks; the tables exist while the context is open.

    Args:
        config: the data section.
        tokenizer_folder: Hugging Face folder of the model.
        numbers: indices of the sources.

    Raises:
        ConfigError, PreflightError: as `buckets.prepare`, except for shortages.
    """
    quotas = source_quotas(config)
    rehearsal = Rehearsal()
    with tempfile.TemporaryDirectory(prefix="longred-plan-") as folder:
        job = Job(config, str(tokenizer_folder), folder, "rehearsal", is_rehearsal=True)
        num_shards = num_bytes = 0

        def count(text_bytes: int, *_: int) -> None:
            nonlocal num_bytes
            num_bytes += text_bytes

        def run(shards: Sequence[Shard]) -> None:
            for shard in shards:
                tokenise_shard(job, shard, count)

        for number in numbers:
            num_bytes = 0
            reading = Reading(job, number, quotas[config.sources[number].name])
            run(reading.first_shards())
            reading.finish(run, num_shards, rehearsal.readings)
            num_shards += len(reading.shards)
            rehearsal.readings.append(reading)
            rehearsal.text_bytes.append(num_bytes)
        yield rehearsal
