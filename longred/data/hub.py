"""Reads documents from Hugging Face datasets: pinned and streamed, one dataset shard at a time."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from longred.config import DataConfig, SourceConfig
from longred.data.documents import Document, Intake
from longred.data.files import content_digest, read_row
from longred.data.finding import folder_files
from longred.data.shards import Part
from longred.errors import ConfigError, PreflightError
from longred.models.hub import HUB

# Besides README.md, the hidden file in which a dataset may name its data files.
DATASET_YAML = ".huggingface.yaml"


def parts(config: DataConfig, source: SourceConfig, key: str) -> Iterator[Part]:
    """Yield the dataset's own shards.

    Raises:
        ConfigError: the revision is not pinned, or the dataset cannot be opened.
        PreflightError: it cannot be reached.
    """
    if not source.revision:
        raise ConfigError(
            f"{key}.revision: pin the commit of {source.path}, a branch name can move"
        )
    count = int(_open(source).num_shards)
    path = "/".join(name for name in (source.path, source.subset, source.split) if name)
    for number in range(count):
        # The size is unknown before reading, so each dataset shard becomes one shard.
        yield Part(path, number, count, config.shard_bytes)


def read(
    config: DataConfig, source: SourceConfig, parts: tuple[Part, ...], intake: Intake
) -> Iterator[Document]:
    """Yield the documents of some shards of the dataset; ids hash shard and row number.

    Raises:
        ConfigError: the dataset's files cannot be parsed.
        PreflightError: it cannot be reached.
    """
    from datasets.exceptions import DatasetGenerationError

    for part in parts:
        path = f"{part.path}/{part.start:05d}"
        shard = _open(source).shard(num_shards=part.end, index=part.start)
        try:
            for row, values in enumerate(shard):
                document = read_row(source, path, row, values, intake)
                if document:
                    yield document
        except OSError as error:
            raise _unreachable(source, error) from error
        except (ValueError, DatasetGenerationError) as error:
            raise ConfigError(
                f"data.sources: shard {part.start} of {source.path} (source {source.name}) cannot "
                f"be parsed ({error}); download the dataset and use a source of kind files, which "
                "skips bad rows"
            ) from error


def fingerprint(config: DataConfig, source: SourceConfig, key: str) -> str:
    """Return a digest of the dataset's name and revision; of a local folder, also of its files.

    `datasets` reads a folder of that name instead of the hub, and ignores the revision there.
    """
    pin = repr((source.path, source.subset, source.split, source.revision))
    if os.path.isdir(source.path or ""):
        pin += content_digest(folder_files(source.path or "", [DATASET_YAML]))
    return hashlib.sha256(pin.encode()).hexdigest()


def _open(source: SourceConfig) -> Any:
    from datasets import load_dataset

    HUB.probe()
    # datasets >= 4 never runs code of a dataset and has no argument that would allow it.
    try:
        return load_dataset(
            source.path,
            name=source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except OSError as error:
        raise _unreachable(source, error) from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"data.sources: {source.path} (source {source.name}) cannot be opened ({error})"
        ) from error


def _unreachable(source: SourceConfig, error: Exception) -> PreflightError:
    return PreflightError(
        f"data.sources: the dataset {source.path} at {source.revision} (source {source.name}) "
        f"cannot be reached ({error}); check the network and the name, log in with `hf auth login` "
        "if it is gated, or download it and use a source of kind files"
    )
