"""Plans a whole recipe: every training, profiling and evaluation."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from longred.cost.advice import Remedy, remedies
from longred.cost.calibrate import calibrate
from longred.cost.evaluation import evaluation_cost
from longred.cost.flops import forward_flops, visible_keys
from longred.cost.plan import TOLERANCE, TrainingPlan, flops_seconds, plan_training
from longred.cost.shape import ModelShape, named_config, shape_of
from longred.cost.speeds import Speeds, key_of, known
from longred.errors import PreflightError
from longred.method.factor_search import num_scored
from longred.method.job import TrainingJob
from longred.method.layout import Layout
from longred.method.methods import METHODS
from longred.models.load import load_config, resolve_model

if TYPE_CHECKING:
    from longred.config import RunConfig, TrainingConfig

SMALL_MODEL = 500_000_000
"""Number of parameters up to which a machine without a GPU is planned as a CPU."""

DEFAULT_GPU = "h200"


def config_of_model(config: "RunConfig") -> PreTrainedConfig:
    """Return the configuration of a recipe's model.

    Those of models named by packaged recipes ship with the package. For other hub models only
    small files are downloaded.

    Raises:
        ConfigError, PreflightError: see `longred.models.load.resolve_model`.
    """
    path = config.model.path
    packaged = None if Path(path).expanduser().exists() else named_config(path)
    return packaged or load_config(resolve_model(path, config.model.revision, weights=False))


def shape_of_model(config: "RunConfig") -> ModelShape:
    """Return the shape of a recipe's model, see `config_of_model`."""
    return shape_of(config_of_model(config))


def jobs(config: "RunConfig", shape: ModelShape) -> Iterator[TrainingJob]:
    """Yield every training of a recipe, window by window; distilled layers are placeholders."""
    selection = config.selection
    wanted = len(selection.layers) if selection.layers else selection.num_distill_layers
    last = range(shape.num_layers - min(wanted, shape.num_layers) + 1, shape.num_layers + 1)
    for at_window in [*config.windows(), config]:
        trained = [METHODS[method].merges or method for method in at_window.training.methods()]
        for method in dict.fromkeys(trained):
            yield _job(at_window.training, method, tuple(last))


def _job(config: "TrainingConfig", method: str, layers: tuple[int, ...]) -> TrainingJob:
    """Return a training without folders."""
    values = {**config.digest_values(), **config.runtime_values()}
    plain = {name: value for name, value in values.items() if name in TrainingJob.fields()}
    recipe = config.recipe(method)
    plain |= {
        "method": method,
        "sigma": config.sigma or recipe.sigma,
        "rows": config.rows(method),
        "distill_layers": layers if recipe.uses_layers() else (),
    }
    return TrainingJob(
        data_folder="", student_folder="", teacher_folder="", data_digest="", **plain
    )


def ways_out(config: "RunConfig") -> dict[str, Any]:
    """Return `adapters_for` and `can_divide` of a recipe, see `longred.cost.advice.remedies`."""
    training = config.training
    # Adapters on merged weights have no teacher, so not with intermediate windows.
    can_adapt = not config.extension.windows and "lora" not in training.methods()

    def can_divide(layout: Layout) -> bool:
        cutting = any(training.recipe(method).cuts("long") for method in training.methods())
        switching = config.extension.method in ("longrope", "cope")
        if layout.sequence_parallel > 1 and (cutting or switching):
            return False
        return all(
            layout.rows_problem(bucket, rows, at_window.target_window) is None
            for at_window in (*config.windows(), config)
            for method in training.methods()
            for bucket, rows in at_window.training.rows(method).items()
        )

    return {"adapters_for": training.method if can_adapt else None, "can_divide": can_divide}


def lengths_of(config: "RunConfig", job: TrainingJob) -> dict[str, int]:
    """Return the row length of each bucket in one of a recipe's trainings, tokens."""
    return {**config.training.block_lengths(), "long": job.target_window}


def choose_device(
    config: "RunConfig", shape: ModelShape, *, device: str = "auto", measure: bool = False
) -> tuple[str, bool]:
    """Return the device that a recipe is planned for, and whether this machine has it.

    Args: as `choose_speeds`.
    """
    here = _device_here(config)
    if device == "auto":
        small = shape.num_parameters <= SMALL_MODEL
        device = here if here != "cpu" or small or measure else DEFAULT_GPU
        device = key_of(device) or device
    return device, device == (key_of(here) or here)


def _device_here(config: "RunConfig") -> str:
    """Return the name of this machine's GPU, or `cpu`."""
    if config.training.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name()


def choose_speeds(
    config: "RunConfig", shape: ModelShape, *, device: str = "auto", measure: bool = False
) -> Speeds:
    """Return the rates of the device that a recipe is planned for.

    Args:
        config: the recipe.
        shape: the shape of its model.
        device: `auto`, `cpu`, or a key of `longred.cost.speeds.GPUS`. `auto` is this machine's GPU;
            without one, the CPU for small models and an H200 for others.
        measure: measure this machine, which must have the device.

    Raises:
        ConfigError: the device is unknown.
        PreflightError: `measure` is set and this machine does not have the device.
    """
    training = config.training
    device, is_here = choose_device(config, shape, device=device, measure=measure)
    here = _device_here(config)
    if measure and not is_here:
        raise PreflightError(
            f"--calibrate: measures this machine ({here}), not {device}; omit --device, or omit "
            "--calibrate to plan with published figures"
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
        # Deterministic sdpa excludes cuDNN and uses torch's FlashAttention 2.
        backend = "flash_attention_2"
    return known(device, backend=backend, dtype=training.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class RecipePlan:
    """The cost of a recipe on a device.

    Attributes:
        shape: the shape of its model.
        speeds: the rates of the device.
        trainings: plans of every method, window by window.
        extension: tokens, FLOPs and seconds of the search for RoPE's factors; 0 without one.
        profiling: tokens, FLOPs and seconds of profiling.
        evaluation: tokens, FLOPs and seconds, all models.
        advice: what makes all trainings fit, if one does not, see `longred.cost.advice`.
    """

    shape: ModelShape
    speeds: Speeds
    trainings: tuple[TrainingPlan, ...]
    extension: Mapping[str, float]
    profiling: Mapping[str, float]
    evaluation: Mapping[str, float]
    advice: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every training fits the device."""
        return all(plan.fits for plan in self.trainings)

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all stages."""
        trained = sum(plan.seconds * plan.num_processes for plan in self.trainings)
        stages = (self.extension, self.profiling, self.evaluation)
        return (trained + sum(stage["seconds"] for stage in stages)) / 3600

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        speeds = dataclasses.asdict(self.speeds)
        speeds["attention_flops"] = {
            str(length): list(rates) for length, rates in self.speeds.attention_flops.items()
        }
        return {
            "num_parameters": self.shape.num_parameters,
            "device": speeds,
            "trainings": [plan.to_json() for plan in self.trainings],
            "extension": dict(self.extension),
            "profiling": dict(self.profiling),
            "evaluation": dict(self.evaluation),
            "fits": self.fits,
            "tolerance": TOLERANCE,
            "advice": [one._asdict() for one in self.advice],
            "gpu_hours": self.gpu_hours,
            "flops_are": "causal; attention's backward pass counts as two forward passes; "
            "recomputation counts in executed_flops only",
        }


def plan_recipe(config: "RunConfig", shape: ModelShape, speeds: Speeds) -> RecipePlan:
    """Plan all stages of a recipe on a device."""
    sized = [(job, lengths_of(config, job)) for job in jobs(config, shape)]
    found = [plan_training(shape, job, lengths, speeds) for job, lengths in sized]
    advice: tuple[Remedy, ...] = ()
    if not all(plan.fits for plan in found):
        limit = found[0].limit_bytes - found[0].reserve_bytes
        advice = tuple(
            remedies(shape, sized, kind=speeds.kind, limit_bytes=limit, **ways_out(config))
        )
    return RecipePlan(
        shape=shape,
        speeds=speeds,
        trainings=tuple(found),
        advice=advice,
        extension=_extension(config, shape, speeds),
        profiling=_profiling(config, shape, speeds),
        evaluation=evaluation_cost(
            config.evaluation, shape, speeds, len(config.training.methods())
        ),
    )


def _extension(config: "RunConfig", shape: ModelShape, speeds: Speeds) -> dict[str, float]:
    """Every candidate of a search reads rows of the target window; few tokens need the head."""
    search, length = config.extension.search, config.target_window
    candidates = num_scored(search.num_rounds, search.population) if search.num_rounds else 0
    tokens = candidates * search.num_rows * length
    flops = forward_flops(shape, length, head=False) * tokens
    seconds = flops_seconds(flops, length, speeds) if tokens else 0.0
    return {"tokens": float(tokens), "flops": flops.total, "seconds": seconds}


def _profiling(config: "RunConfig", shape: ModelShape, speeds: Speeds) -> dict[str, float]:
    """Both models read the tokens in float32, and the attention of every layer is compared."""
    tokens, length = config.profiling.num_tokens, config.data.short_length
    forward = forward_flops(shape, length, head=False)
    keys = sum(visible_keys(length, window) for window in shape.windows)
    compared = dataclasses.replace(forward * 0.0, relations=2 * 2.0 * shape.attention_size * keys)
    flops = (forward * 2.0 + compared) * tokens
    slower = 8.0 if speeds.kind == "cuda" else 1.0
    seconds = flops_seconds(flops, length, speeds) * slower
    return {"tokens": float(tokens), "flops": flops.total, "seconds": seconds}
