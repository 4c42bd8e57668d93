"""The stages that decide which model is trained: the original, and its extension."""

from pathlib import Path

from longred.artifacts import MODEL_FILES, Artifact, Store, folder_digest
from longred.config import ExtensionConfig, ModelConfig
from longred.hashes import FileHashes
from longred.stages.versions import VERSIONS


def find_model(config: ModelConfig, *, store: Store) -> Artifact:
    """Return the original model's folder, named by the hash of its files.

    The store remembers the hashes of files that have not changed.

    Raises:
        PreflightError: the model is missing, unreadable or cannot be reached.
        ConfigError: its architecture or file format is not supported.
    """
    from longred.models import resolve_model

    folder = resolve_model(config.path, config.revision)
    hashes = FileHashes(store.root / "hashes.json", saves=store.writes)
    digest = folder_digest(folder, MODEL_FILES, sha256=hashes.sha256)
    return Artifact("model", digest, str(folder), reused=True)


def extend_model(config: ExtensionConfig, base: Artifact, *, store: Store) -> Artifact:
    """Rescale RoPE: the student's config, with the original weights by reference."""
    from longred.extension import write_extension

    def make(folder: Path, work: Path) -> None:
        write_extension(
            base.folder,
            folder,
            digest=base.digest,
            method=config.method,
            original_window=config.original_window,
            target_window=config.target_window,
            **config.settings(),
        )

    inputs = {"model": base.digest}
    return store.build("extension", config.digest_values(), inputs, make, VERSIONS["extension"])
