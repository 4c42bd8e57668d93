"""The stage that turns text into buckets."""

from typing import TYPE_CHECKING

from longred.config import DataConfig
from longred.progress import Progress
from longred.stages.versions import VERSIONS
from longred.store.artifacts import TOKENIZER_FILES, Artifact, Store, folder_digest

if TYPE_CHECKING:
    from longred.data.executors import MapGroups


def prepare_data(
    config: DataConfig,
    base: Artifact,
    *,
    store: Store,
    on_progress: Progress | None = None,
    map_groups: "MapGroups | None" = None,
) -> Artifact:
    """Fill the long, short and original buckets and hold out some documents.

    The content of the sources is an input: changed text under the same settings is new data.
    `map_groups` runs groups of shards, as in `executors.run_shards`.
    """
    from longred.data.buckets import prepare
    from longred.data.sources import fingerprints

    texts = {f"text/{name}": digest for name, digest in fingerprints(config).items()}
    return store.build(
        "data",
        config.digest_values(),
        {"tokenizer": folder_digest(base.folder, TOKENIZER_FILES), **texts},
        lambda folder, work: prepare(
            config, base.folder, folder, work, on_progress=on_progress, map_groups=map_groups
        ),
        VERSIONS["data"],
    )
