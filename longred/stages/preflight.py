"""Checks of a whole run before its first stage: what a later stage would refuse is refused now."""

import logging
from typing import TYPE_CHECKING, Any

from longred.config import RunConfig
from longred.errors import LongredError
from longred.runs.scope import Mode
from longred.stages.checks import CHECKS
from longred.stages.checks import Preflight as Preflight

if TYPE_CHECKING:
    from longred.runs.session import Run

log = logging.getLogger(__name__)

LATER = {
    "data": ("data", "profiling", "selection", "training", "evaluation"),
    "extension": ("extension", "profiling", "selection", "training", "evaluation"),
    "profiling": ("profiling", "selection", "training", "evaluation"),
    "selection": ("selection", "training", "evaluation"),
    "training": ("training", "evaluation"),
    "evaluation": ("evaluation",),
    "report": (),
}
"""Stages that have to be built again if a stage is, itself first."""


def refuse_early(run: "Run", config: RunConfig) -> None:
    """Make a run check all stages that it will build before it builds the first of them.

    A stage that exists already is not checked, nor one outside the scope of the run: it may be for
    another machine. The text of the data is left to the data stage, which looks at it first.
    """
    checked: set[str] = set()

    def check(stage: str) -> None:
        scope = run.store.scope
        built = {s for s in LATER[stage] if scope.mode(s) in (Mode.MAKE, Mode.REMAKE)}
        if not built - checked:
            return
        checked.update(built)
        methods = _methods_after(stage, run, config)
        works = [run.store.work(str(run.record.stages[-1].digest))]
        settings: dict[str, Any] = {"reads_text": False, "shakes_hands": True, "works": works}
        for warning in refuse_all(Preflight(config, built, methods, **settings)):
            log.warning("%s", warning)

    run.store.before_build = check


def _methods_after(stage: str, run: "Run", config: RunConfig) -> list[str] | None:
    """Return the methods that may have to be trained, given the first stage that is built."""
    methods = config.training.methods()
    if stage in ("profiling", "selection"):
        return [method for method in methods if config.training.recipe(method).uses_layers()]
    name = run.record.stages[-1].name.removeprefix("training/")
    # The trainings before the first one that is built exist.
    return methods[methods.index(name) :] if name in methods else None


def refuse_all(asked: Preflight) -> list[str]:
    """Refuse everything that the stages would refuse; build and write nothing.

    Returns:
        Warnings: what is not refused, but probably not intended.

    Raises:
        LongredError: of the class of the first problem; the message has all problems, one a line.
    """
    problems, warnings = find_problems(asked)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    return warnings


def find_problems(asked: Preflight) -> tuple[list[LongredError], list[str]]:
    """Return what would be refused, and warnings; see `refuse_all`.

    Raises:
        LongredError: the model cannot be found, so that nothing else can be checked.
    """
    _ = asked.model
    problems: list[LongredError] = []
    warnings: list[str] = []
    for stage, check in CHECKS:
        if stage not in asked.stages:
            continue
        try:
            warnings += check(asked) or ()
        except LongredError as error:
            if str(error) not in map(str, problems):
                problems.append(error)
    return problems, warnings


def claimed_window(asked: Preflight) -> str:
    """Return one sentence: which window an exported student claims, and why.

    Raises:
        ConfigError: the model cannot be extended so.
    """
    from longred.method.rope import is_dropped, switches
    from longred.models.architectures import main_rope

    extended = asked.extended(asked.config)
    rope = main_rope(extended)
    how = f"RoPE is rescaled by {asked.config.extension.method}"
    if is_dropped(rope):
        how = "RoPE is switched off by drope"
    if switches(rope):
        how += f" beyond {asked.config.original_window:,}"
    if rope.get("rope_type", "default") != "default":
        how += f", which readers must support as rope type {rope['rope_type']}"
    else:
        how += f" to rope_theta {rope['rope_theta']:,.0f}"
    window = extended.max_position_embeddings
    return (
        f"exports claim a window of {window:,} tokens (max_position_embeddings), since "
        f"target_window is {asked.config.target_window:,} and {how}"
    )
