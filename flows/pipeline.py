"""The whole method as one sentence, from a recipe to a report.

`full_pipeline` makes a Prefect flow of it. This module imports no Prefect, whose import takes
seconds: in a dry run the stages are called directly, and that is all that a run whose artifacts all
exist needs.
"""

from collections.abc import Sequence

from flows.windows import Start, starting_points
from longred.config import EvaluationConfig, TrainingConfig
from longred.runs.record import StageRecord, load_config, pin_run
from longred.runs.scope import WHAT_CHANGED, Scope
from longred.runs.session import Watcher, open_run, run_options
from longred.services.servers import mlflow_page
from longred.stages import REINDEXINGS, kept_students
from longred.stages.preflight import refuse_early
from longred.store.artifacts import Artifact, Store
from tasks.stages import (
    evaluate_model,
    extend_model,
    find_model,
    freeze_samples,
    prepare_data,
    profile_attention,
    select_layers,
    train_student,
    write_report,
)


def run_stages(
    recipe: str,
    overrides: Sequence[str] = (),
    start_from: str = WHAT_CHANGED,
    **flow_run: str | None,
) -> str:
    """Extend a model's context window and restore its short-text skill.

    Args:
        recipe: name or file of a recipe, or the id of an earlier run.
        overrides: changes to the recipe, each `section.key=value`.
        start_from: rebuild this stage and all later ones, even if nothing changed.
        flow_run: arguments of `open_run` that describe the Prefect flow run.

    Returns:
        The id of the run.
    """
    recipe = pin_run(recipe, overrides, flow_run.get("prefect_flow_run_id"))
    config = load_config(recipe, overrides)
    page = mlflow_page(Store(config.store.path).root)
    with open_run(
        config, recipe, overrides, start_from=start_from, mlflow_page=page, **flow_run
    ) as run:
        refuse_early(run, config)
        base = find_model(config.model, config.selection)
        data = prepare_data(config.data, base)
        extended = extend_model(config.extension, base, data=data)
        samples = freeze_samples(config.evaluation, base, data)
        profile = profile_attention(config.profiling, base, extended, data)
        layers = select_layers(config.selection, profile)
        starts = starting_points(config, base, (extended, data, layers))
        students = train_students(config.training, base, starts)
        references = {"original": base, "rescaled": extended} | dict.fromkeys(REINDEXINGS, base)
        trained = students | kept_students(config, students)
        scores = evaluate_models(config.evaluation, references, trained, samples, data)
        made = (data, extended, profile, layers, students, samples, scores)
        write_report(config.report, config.digest_values(), *made)
    return run.record.id


def look_up(recipe: str, overrides: Sequence[str]) -> list[StageRecord]:
    """Return the stages of a run as a dry run finds them: skipped if their artifacts exist.

    Raises:
        LongredError: a stage refused its input.
    """
    watcher = Watcher()
    with run_options(scope=Scope(is_dry=True), listener=watcher, is_only=True):
        run_stages(recipe, overrides)
    return watcher.stages


def train_students(
    config: TrainingConfig, base: Artifact, starts: dict[str, Start]
) -> dict[str, Artifact]:
    """Train the student of the method and those of its baselines, one after the other."""
    return {method: train_student(config, method, base, *start) for method, start in starts.items()}


def evaluate_models(
    config: EvaluationConfig,
    references: dict[str, Artifact],
    students: dict[str, Artifact],
    samples: Artifact,
    data: Artifact,
) -> dict[str, Artifact]:
    """Evaluate the configured references and all students on the same questions."""
    models = {name: references[name] for name in config.references} | students
    return {
        name: evaluate_model(config, name, model, references["original"], samples, data)
        for name, model in models.items()
    }
