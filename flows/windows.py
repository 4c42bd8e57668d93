"""Progressive extension: raise the window in steps; each student is the next one's start."""

from longred.config import RunConfig
from longred.store.artifacts import Artifact
from tasks.stages import extend_model, prepare_data, profile_attention, select_layers, train_student

Start = tuple[Artifact, Artifact, Artifact]
"""Inputs of a training: the extended model, the data, the selected layers."""


def starting_points(config: RunConfig, base: Artifact, direct: Start) -> dict[str, Start]:
    """Return the inputs of each method's last training.

    Args:
        config: settings of the run; without intermediate windows every method uses `direct`.
        base: the original model, which is the teacher at every window.
        direct: the inputs for extending the original model to the target window at once.
    """
    methods = config.training.methods()
    if not config.extension.windows:
        return dict.fromkeys(methods, direct)
    return {method: raise_window(config, base, method) for method in methods}


def raise_window(config: RunConfig, base: Artifact, method: str) -> Start:
    """Train a student at each intermediate window; return the inputs at the target window."""
    student: Artifact | None = None
    trained = config.training.recipe(method).merges or method
    for window in config.windows():
        start = start_at(window, base, method, student)
        at = f"-{window.target_window}"
        student = train_student(window.training, trained, base, *start, at=at)
    return start_at(config, base, method, student)


def start_at(config: RunConfig, base: Artifact, method: str, student: Artifact | None) -> Start:
    """Extend, profile and select at one window, starting from a student of a smaller window."""
    at = f"/{config.target_window}/{method}"
    extended = extend_model(config.extension, base, student, at=at)
    data = prepare_data(config.data, base, at=at)
    profile = profile_attention(config.profiling, base, extended, data, at=at)
    return extended, data, select_layers(config.selection, profile, at=at)
