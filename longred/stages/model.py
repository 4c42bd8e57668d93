"""The stages that determine the trained model: the original, and its extension."""

from pathlib import Path

from longred.config import ExtensionConfig, ModelConfig, SelectionConfig
from longred.method.selection import select_layers
from longred.stages.versions import VERSIONS
from longred.store.artifacts import MODEL_FILES, Artifact, Store, folder_digest, read_json
from longred.store.hashes import FileHashes


def find_model(
    config: ModelConfig, selection: SelectionConfig | None = None, *, store: Store
) -> Artifact:
    """Return the original model's folder as an artifact, identified by the hash of its files.

    Args:
        config: the model.
        selection: layer selection to validate against the number of layers.
        store: caches the hashes of unchanged files.

    Raises:
        PreflightError: the model is missing, unreadable or cannot be reached.
        ConfigError: its architecture or file format is not supported, or it lacks a selected layer.
    """
    from longred.models.find import resolve_model

    folder = resolve_model(config.path, config.revision)
    if selection is not None:
        # The scores do not matter: a selection that fails on equal scores fails on any.
        num_layers = read_json(folder / "config.json")["num_hidden_layers"]
        select_layers([1.0] * num_layers, **selection.model_dump())
    hashes = FileHashes(store.root / "hashes.json", saves=store.writes)
    digest = folder_digest(folder, MODEL_FILES, sha256=hashes.sha256)
    return Artifact("model", digest, str(folder), reused=True)


def extend_model(
    config: ExtensionConfig, base: Artifact, start: Artifact | None = None, *, store: Store
) -> Artifact:
    """Write the student's config with rescaled RoPE; its weights are referenced, not copied.

    The weights are those of the original, or of `start`, a student of a smaller window. RoPE is
    always rescaled from the original's.
    """

    def make(folder: Path, work: Path) -> None:
        from longred.models.extension import write_extension

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

    # The other windows of a run cannot change the result at this one.
    values = {key: value for key, value in config.digest_values().items() if key != "windows"}
    inputs = {"model": base.digest, **({"training": start.digest} if start else {})}
    return store.build("extension", values, inputs, make, VERSIONS["extension"])
