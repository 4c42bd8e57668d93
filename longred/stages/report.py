"""The stage that compares the models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.config import ReportConfig
from longred.runs.run_store import RunStore
from longred.stages.versions import VERSIONS
from longred.store.artifacts import Artifact, Store


def write_report(
    config: ReportConfig,
    recipe: Mapping[str, Any],
    data: Artifact,
    extended: Artifact,
    profile: Artifact,
    layers: Artifact,
    students: Mapping[str, Artifact],
    samples: Artifact,
    scores: Mapping[str, Artifact],
    *,
    store: Store,
) -> Artifact:
    """Compare the models: tables, plots and one HTML page."""

    def make(folder: Path, work: Path) -> None:
        from longred.report.inputs import made_by, read_inputs
        from longred.report.write import write

        found = read_inputs(
            recipe=dict(recipe),
            data=data.folder,
            profile=profile.folder,
            selection=layers.folder,
            students={name: artifact.folder for name, artifact in students.items()},
            samples=samples.folder,
            scores={name: artifact.folder for name, artifact in scores.items()},
            made_by=made_by(store.record) if isinstance(store, RunStore) else None,
        )
        write(config, found, folder)

    inputs = {
        "data": data.digest,
        "extension": extended.digest,
        "profiling": profile.digest,
        "selection": layers.digest,
        "evaluation/samples": samples.digest,
        **{f"training/{name}": artifact.digest for name, artifact in students.items()},
        **{f"evaluation/{name}": artifact.digest for name, artifact in scores.items()},
    }
    values = {**config.digest_values(), "recipe": dict(recipe)}
    return store.build("report", values, inputs, make, VERSIONS["report"])
