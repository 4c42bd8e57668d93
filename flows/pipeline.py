"""The whole method as one flow, from a recipe to a report."""

from typing import Literal

from prefect import flow

from flows.flow_run import HOOKS, current_flow_run
from flows.forms import overrides_of
from flows.windows import Start, starting_points
from longred.config import EvaluationConfig, TrainingConfig
from longred.runs.record import load_config, pin_run
from longred.runs.scope import STAGES, WHAT_CHANGED
from longred.runs.session import open_run
from longred.services.servers import mlflow_page
from longred.stages import kept_students
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

Overrides = overrides_of()
StartFrom = Literal[(WHAT_CHANGED, *STAGES[1:])]


@flow(name="longred", flow_run_name="{recipe}", persist_result=False, **HOOKS)
def full_pipeline(
    recipe: str = "demo",
    overrides: Overrides = [],  # noqa: B006 - Prefect shows the default
    start_from: StartFrom = WHAT_CHANGED,
) -> str:
    """Extend a model's context window and restore its short-text skill.

    Args:
        recipe: name of a packaged recipe such as `demo`, path of a YAML file where the worker
            runs, or the id of an earlier run (or `latest`) to use its settings.
        overrides: changes to the recipe, one in each item, such as `training.num_steps=100`.
            Sections are model, attention, data, extension, profiling, selection, training,
            evaluation, report, store and tracking; `longred config` explains their keys.
        start_from: stage such as `training` that is rebuilt with all later ones, even if nothing
            changed; by default finished stages are reused.

    Returns:
        The id of the run, as accepted by `longred show`.
    """
    flow_run = current_flow_run()
    recipe = pin_run(recipe, overrides, flow_run["prefect_flow_run_id"])
    config = load_config(recipe, overrides)
    page = mlflow_page(Store(config.store.path).root)
    with open_run(
        config, recipe, overrides, start_from=start_from, mlflow_page=page, **flow_run
    ) as run:
        refuse_early(run, config)
        base = find_model(config.model, config.selection)
        extended = extend_model(config.extension, base)
        data = prepare_data(config.data, base)
        samples = freeze_samples(config.evaluation, base, data)
        profile = profile_attention(config.profiling, base, extended, data)
        layers = select_layers(config.selection, profile)
        starts = starting_points(config, base, (extended, data, layers))
        students = train_students(config.training, base, starts)
        references = {"original": base, "rescaled": extended}
        trained = students | kept_students(config, students)
        scores = evaluate_models(config.evaluation, references, trained, samples, data)
        made = (data, extended, profile, layers, students, samples, scores)
        write_report(config.report, config.digest_values(), *made)
    return run.record.id


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
