"""The stages that determine the trained model: the original, and its extension."""

from pathlib import Path
from typing import Any

from longred.config import ExtensionConfig, ModelConfig, SelectionConfig
from longred.errors import ConfigError
from longred.method.selection import select_layers
from longred.progress import Progress
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
    config: ExtensionConfig,
    base: Artifact,
    start: Artifact | None = None,
    data: Artifact | None = None,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> Artifact:
    """Write the student's config with rescaled RoPE; its weights are referenced, not copied.

    The weights are those of the original, or of `start`, a student of a smaller window. RoPE is
    always rescaled from the original's. `data` is read by a search for factors alone.

    Raises:
        ConfigError: the model cannot be extended so, or a search finds nothing.
    """
    text = data if config.search.num_rounds else None
    if config.search.num_rounds and text is None:
        raise ValueError("a search for factors needs the data")

    def make(folder: Path, work: Path) -> None:
        from longred.models.extension import write_extension

        settings = config.settings()
        if text is not None:
            found = _search(config, base, text, work, on_progress)
            settings |= {"long_factor": found["long_factor"], "search": found}
        write_extension(
            base.folder,
            folder,
            digest=(start or base).digest,
            start=start.folder if start else None,
            method=config.method,
            original_window=config.original_window,
            target_window=config.target_window,
            **settings,
        )

    # The other windows of a run cannot change the result at this one.
    values = {key: value for key, value in config.digest_values().items() if key != "windows"}
    inputs = {"model": base.digest, **({"training": start.digest} if start else {})}
    if text is not None:
        inputs["data"] = text.digest
    return store.build("extension", values, inputs, make, VERSIONS["extension"])


def _search(
    config: ExtensionConfig,
    base: Artifact,
    data: Artifact,
    work: Path,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """Search for factors with the original model on held-out text; return the result as JSON."""
    import torch

    from longred.data.loader import read_rows
    from longred.models.load import choose_device, load_model, load_tokenizer
    from longred.profiling.factors import search_factors
    from longred.profiling.needles import hide_needles

    search = config.search
    device = choose_device(search.device, "extension.search.device")
    tokenizer = load_tokenizer(base.folder)
    wanted = search.num_rows * config.target_window
    haystack = read_rows(data.folder, "short", split="held_out", num_tokens=wanted).flatten()
    rows = hide_needles(
        haystack.tolist(),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        length=config.target_window,
        num_rows=search.num_rows,
        seed=search.seed,
    )
    # Long rows need the fast kernels of a GPU, which read bfloat16.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    found = search_factors(
        load_model(base.folder, device=device, dtype=dtype),
        rows,
        windows={
            "original_window": config.original_window,
            "target_window": config.target_window,
        },
        settings=config.settings(),
        num_rounds=search.num_rounds,
        population=search.population,
        seed=search.seed,
        work=work,
        on_progress=on_progress,
    )
    if found.perplexity >= found.perplexity_by_guessing:
        raise ConfigError(
            "extension.search: no factors let the untrained model read needles at target_window "
            f"({config.target_window} tokens): their perplexity is {found.perplexity:.4g} at best, "
            f"and guessing gives {found.perplexity_by_guessing:.4g}, so that the choice would be "
            "arbitrary; set extension.search.num_rounds=0, or a smaller target_window"
        )
    return found._asdict()
