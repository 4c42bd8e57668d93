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


def extend_model(
    config: ExtensionConfig, base: Artifact, start: Artifact | None = None, *, store: Store
) -> Artifact:
    """Rescale RoPE: the student's config, with weights by reference.

    The weights are the original's, or those of `start`, a student of a smaller window. RoPE is
    always the original's, rescaled.
    """
    from longred.extension import write_extension

    def make(folder: Path, work: Path) -> None:
        write_extension(
            base.folder,
            folder,
            digest=(start or base).digest,
            start=start.folder if start else None,
            method=config.method,
            original_window=config.original_window,
            target_window=config.target_window,
            **config.settings(),
        )

    # On which windows a run goes there cannot change what is made at this one.
    values = {key: value for key, value in config.digest_values().items() if key != "windows"}
    inputs = {"model": base.digest, **({"training": start.digest} if start else {})}
    return store.build("extension", values, inputs, make, VERSIONS["extension"])
