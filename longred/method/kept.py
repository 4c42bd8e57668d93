"""Names of intermediate students, which a training saves after the steps of `keep_steps`."""

FOLDER = "kept"


def kept_place(step: int) -> str:
    """Return the folder of the student of a step, relative to the training's folder."""
    return f"{FOLDER}/step-{step:06d}"


def kept_name(method: str, step: int) -> str:
    """Return the name of the student of a step among the models of a run."""
    return f"{method}-step-{step}"
