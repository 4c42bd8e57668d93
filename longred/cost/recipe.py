"""What a whole recipe costs, stage by stage where it matters."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longred.cost.calibrate import calibrate
from longred.cost.flops import forward_flops, visible_keys
from longred.cost.named import named_config
from longred.cost.plan import TrainingPlan, flops_seconds, plan_training
from longred.cost.shape import ModelShape, shape_of
from longred.cost.speeds import Speeds, key_of, known
from longred.errors import PreflightError
from longred.method.job import TrainingJob
from longred.method.methods import METHODS
from longred.models.load import load_config, resolve_model

if TYPE_CHECKING:
    from longred.config import EvaluationConfig, RunConfig, TrainingConfig

SMALL_MODEL = 500_000_000
"""Parameters below which a machine without a GPU is planned for as it is."""

DEFAULT_GPU = "h200"


def shape_of_model(config: "RunConfig") -> ModelShape:
    """Return the shape of a recipe's model.

    That of a model which a packaged recipe names ships with it. Of another one on the hub only
    small files are fetched.

    Raises:
        ConfigError, PreflightError: as finding the model would.
    """
    path = config.model.path
    named = None if Path(path).expanduser().exists() else named_config(path)
    if named is not None:
        return shape_of(named)
    return shape_of(load_config(resolve_model(path, config.model.revision, weights=False)))


def jobs(config: "RunConfig", shape: ModelShape) -> Iterator[TrainingJob]:
    """Yield every training of a recipe, window by window, before its layers are selected."""
    for at_window in [*config.windows(), config]:
        trained = [METHODS[method].merges or method for method in at_window.training.methods()]
        for method in dict.fromkeys(trained):
            yield job_of(at_window.training, method, shape, _num_distilled(config, shape))


def job_of(
    config: "TrainingConfig", method: str, shape: ModelShape, num_distilled: int
) -> TrainingJob:
    """Return a training as a value, without folders."""
    values = {**config.digest_values(), **config.runtime_values()}
    plain = {name: value for name, value in values.items() if name in TrainingJob.fields()}
    last = range(shape.num_layers - num_distilled + 1, shape.num_layers + 1)
    recipe = config.recipe(method)
    plain |= {
        "method": method,
        "sigma": config.sigma or recipe.sigma,
        "rows": config.rows(method),
        "distill_layers": tuple(last) if recipe.uses_layers() else (),
    }
    nowhere: dict[str, Any] = dict.fromkeys(
        ("data_folder", "student_folder", "teacher_folder", "data_digest"), ""
    )
    return TrainingJob(**nowhere, **plain)


def lengths_of(config: "RunConfig", job: TrainingJob) -> dict[str, int]:
    """Return the tokens of a row of each bucket in one of a recipe's trainings."""
    return {**config.training.block_lengths(), "long": job.target_window}


def _num_distilled(config: "RunConfig", shape: ModelShape) -> int:
    selection = config.selection
    wanted = len(selection.layers) if selection.layers else selection.num_distill_layers
    return min(wanted, shape.num_layers)


def choose_speeds(
    config: "RunConfig", shape: ModelShape, *, device: str = "auto", measure: bool = False
) -> Speeds:
    """Return the device that a recipe is planned for.

    Args:
        config: the recipe.
        shape: of its model.
        device: `auto`, `cpu`, or a key of `longred.cost.speeds.GPUS`. `auto` is this machine's GPU;
            without one, this machine for small models and an H200 for others.
        measure: measure this machine, which must have the device.

    Raises:
        ConfigError: the device is not known.
        PreflightError: it is to be measured and is not here.
    """
    training = config.training
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if training.device == "cpu":
        here = "cpu"
    if device == "auto":
        small = shape.num_parameters <= SMALL_MODEL
        device = here if here != "cpu" or small or measure else DEFAULT_GPU
        device = key_of(device) or device
    is_here = device == (key_of(here) or here)
    if measure and not is_here:
        raise PreflightError(
            f"--calibrate: measures this machine ({here}), not {device}; leave --device out, or "
            "plan for it by its published figures without --calibrate"
        )
    if measure or device == "cpu" or (is_here and key_of(here) is None):
        kind = torch.device("cpu" if device == "cpu" else "cuda")
        if training.num_threads and kind.type == "cpu":
            torch.set_num_threads(training.num_threads)
        return calibrate(
            shape,
            sorted(set(training.block_lengths().values())),
            tokens=training.micro_batch_tokens,
            device=kind,
            dtype=getattr(torch, training.dtype),
            backend=training.attention_backend,
        )
    backend = training.attention_backend
    if training.deterministic and backend in ("auto", "sdpa"):
        # cuDNN's kernel is left out, and torch's own is FlashAttention 2.
        backend = "flash_attention_2"
    return known(device, backend=backend, dtype=training.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class RecipePlan:
    """What a recipe takes on a device.

    Attributes:
        shape: of its model.
        speeds: of the device.
        trainings: of every method, window by window.
        profiling: FLOPs and seconds of the profile.
        evaluation: tokens of RULER's prompts, FLOPs and seconds, all models.
    """

    shape: ModelShape
    speeds: Speeds
    trainings: tuple[TrainingPlan, ...]
    profiling: Mapping[str, float]
    evaluation: Mapping[str, float]

    @property
    def gpu_hours(self) -> float:
        """GPU hours of everything."""
        trained = sum(plan.seconds * plan.num_processes for plan in self.trainings)
        return (trained + self.profiling["seconds"] + self.evaluation["seconds"]) / 3600

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        speeds = dataclasses.asdict(self.speeds)
        speeds["attention_flops"] = {
            str(length): list(rates) for length, rates in self.speeds.attention_flops.items()
        }
        return {
            "num_parameters": self.shape.num_parameters,
            "device": speeds,
            "trainings": [plan.to_json() for plan in self.trainings],
            "profiling": dict(self.profiling),
            "evaluation": dict(self.evaluation),
            "gpu_hours": self.gpu_hours,
            "flops_are": "causal, attention's backward pass two forward passes; what is computed "
            "again is counted in executed_flops alone",
        }


def plan_recipe(config: "RunConfig", shape: ModelShape, speeds: Speeds) -> RecipePlan:
    """Return what a recipe takes on a device."""
    found = [
        plan_training(shape, job, lengths_of(config, job), speeds) for job in jobs(config, shape)
    ]
    return RecipePlan(
        shape=shape,
        speeds=speeds,
        trainings=tuple(found),
        profiling=_profiling(config, shape, speeds),
        evaluation=_evaluation(config.evaluation, shape, speeds, len(config.training.methods())),
    )


def _profiling(config: "RunConfig", shape: ModelShape, speeds: Speeds) -> dict[str, float]:
    """Both models read the tokens in float32, and every layer's attentions are compared."""
    tokens, length = config.profiling.num_tokens, config.data.short_length
    forward = forward_flops(shape, length, head=False)
    keys = sum(visible_keys(length, window) for window in shape.windows)
    compared = dataclasses.replace(forward * 0.0, relations=2 * 2.0 * shape.attention_size * keys)
    flops = (forward * 2.0 + compared) * tokens
    slower = 8.0 if speeds.kind == "cuda" else 1.0
    seconds = flops_seconds(flops, length, speeds) * slower
    return {"tokens": float(tokens), "flops": flops.total, "seconds": seconds}


def _evaluation(
    config: "EvaluationConfig", shape: ModelShape, speeds: Speeds, num_students: int
) -> dict[str, float]:
    """RULER's prompts; the short tasks are few tokens beside them."""
    ruler, num_models = config.ruler, num_students + len(config.references)
    tokens = flops = seconds = 0.0
    for length in ruler.lengths:
        read = float(length * len(ruler.tasks) * ruler.num_samples * num_models)
        forward = forward_flops(shape, length, head=False) * read
        tokens, flops = tokens + read, flops + forward.total
        seconds += flops_seconds(forward, length, speeds)
    return {"tokens": tokens, "flops": flops, "seconds": seconds, "num_models": float(num_models)}
