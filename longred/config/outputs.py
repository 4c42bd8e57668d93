"""What is made of the results, and where everything is kept."""

from longred.config.section import NonNegative, Section, runtime


class ReportConfig(Section):
    """How scores are compared; tasks that the original barely solves are dropped first."""

    title: str = "Restoration after context extension"
    min_points_above_chance: NonNegative = 10.0


class StoreConfig(Section):
    """Where artifacts, work in progress and run records are kept."""

    path: str = runtime("outputs")


class TrackingConfig(Section):
    """Where MLflow keeps the runs; without a `uri`, in an SQLite file inside the store."""

    uri: str | None = runtime(None)
    experiment: str = runtime("longred")
