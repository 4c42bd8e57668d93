"""What is made of the results, and where everything is kept."""

from longred.config.section import NonNegative, Section, runtime


class ReportConfig(Section):
    """How scores are compared; tasks that the original barely solves are dropped first."""

    title: str = "Restoration after context extension"
    min_points_above_chance: NonNegative = 10.0


class StoreConfig(Section):
    """Where artifacts, work in progress and run records are kept.

    `remote` is an fsspec address (`s3://bucket/folder`) where finished artifacts are kept too.
    """

    path: str = runtime("outputs")
    remote: str | None = runtime(None)


class TrackingConfig(Section):
    """Where MLflow keeps the runs; without a `uri`, in an SQLite file inside the store."""

    uri: str | None = runtime(None)
    experiment: str = runtime("longred")
