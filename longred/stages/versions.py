"""Format version of each stage's artifacts."""

VERSIONS = {
    "data": 2,
    "extension": 2,
    "profiling": 2,
    "selection": 3,
    "training": 2,
    "evaluation": 5,
    "report": 7,
}
"""Raised when a stage's code builds something else from the same settings and inputs."""
