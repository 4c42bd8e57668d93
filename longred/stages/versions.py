"""Which version of its own format each stage writes."""

VERSIONS = {
    "data": 2,
    "extension": 2,
    "profiling": 2,
    "selection": 3,
    "training": 2,
    "evaluation": 3,
    "report": 4,
}
"""Raised when a stage's code makes something else of the same settings and inputs."""
