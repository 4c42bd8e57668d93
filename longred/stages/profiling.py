"""The stages that measure the drift caused by rescaling, and select layers by it."""

from pathlib import Path

from longred.config import ProfilingConfig, SelectionConfig
from longred.progress import Progress
from longred.stages.versions import VERSIONS
from longred.store.artifacts import Artifact, Store, write_json
from longred.store.journal import JOURNAL_NAME, Journal


def profile_attention(
    config: ProfilingConfig,
    base: Artifact,
    extended: Artifact,
    data: Artifact,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> Artifact:
    """Measure the drift of each layer's attention and hidden states on held-out text."""

    def make(folder: Path, work: Path) -> None:
        from longred.data.loader import read_rows
        from longred.models.load import choose_device, load_model
        from longred.profiling.drift import profile_drift, start_beyond, write_parquet

        device, backend = choose_device(config.device, "profiling.device"), config.attention_backend
        student = load_model(extended.folder, device=device, original=base.folder, backend=backend)
        rows_NT = read_rows(data.folder, "short", split="held_out", num_tokens=config.num_tokens)
        drift = profile_drift(
            load_model(base.folder, device=device, backend=backend),
            student,
            rows_NT,
            batch_rows=config.batch_rows,
            student_start=start_beyond(student.config, rows_NT.shape[1]),
            on_progress=on_progress,
        )
        write_json(folder / "drift.json", drift.to_json())
        write_parquet(drift, folder / "drift.parquet")
        journal = Journal(folder / JOURNAL_NAME)
        layers = zip(drift.attention_kl, drift.hidden_similarity, strict=True)
        for layer, (kl, similarity) in enumerate(layers):
            name = f"profiling/layer_{layer:02d}"
            journal.append(
                {f"{name}/attention_kl": kl, f"{name}/hidden_similarity": similarity}, step=0
            )
        journal.close()

    inputs = {"model": base.digest, "extension": extended.digest, "data": data.digest}
    return store.build("profiling", config.digest_values(), inputs, make, VERSIONS["profiling"])


def select_layers(config: SelectionConfig, profile: Artifact, *, store: Store) -> Artifact:
    """Select the layers to distil from the profile, and explain the choice."""

    def make(folder: Path, work: Path) -> None:
        from longred.method import selection
        from longred.profiling.drift import Drift

        drift = Drift.from_json(profile.read_json("drift.json"))
        strategy = config.strategy
        measure = selection.MEASURES[strategy]
        scores = drift.layer_scores(measure.name)
        layers = selection.select_layers(
            scores,
            strategy=strategy,
            num_distill_layers=config.num_distill_layers,
            layers=config.layers,
            share=config.share,
        )
        sentences = selection.explain(scores, layers, strategy=strategy)
        reasons = [
            {"distill_layer": layer, "decoder_layer": layer - 1, "text": text}
            for layer, text in zip(layers, sentences, strict=True)
        ]
        number = selection.explain_number(scores, layers, strategy=strategy, share=config.share)
        content = {
            "strategy": strategy,
            "measure": measure.name,
            "layer_scores": scores,
            "distill_layers": layers,
            "number_text": number,
            "reasons": reasons,
        }
        write_json(folder / "selection.json", content)

    inputs = {"profiling": profile.digest}
    return store.build("selection", config.digest_values(), inputs, make, VERSIONS["selection"])
