"""Derives a first recipe from a model, a target window, a text and a machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from longred.cli.first_text import own_text, public_corpora
from longred.cli.recipe_text import Entry, nested, recipe_text
from longred.config import RunConfig, load_recipe, load_recorded
from longred.config.advice import MANY_ROWS, at_nearest_window, unit_of
from longred.config.derived import MIN_STEPS, STEP_TOKENS
from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.method.rope import ROPE_METHODS, proposed_theta
from longred.recipes import names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longred.cost.recipe import RecipePlan
    from longred.cost.shape import ModelShape
    from longred.cost.speeds import Speeds

LEARNING_RATES = ((1e9, 2e-5), (1e8, 5e-5), (1e7, 2e-4), (0, 5e-4))
"""Parameters from which on a learning rate is proposed: the paper's, the demo's, ours between."""

BEST_FOR_CREAM = 8
"""Growth of the window up to which longred-c is proposed: cream was better at 4 times the window
and uniform at 16 times (paper, section 5)."""

PAPER_LAYERS = 6
"""Distilled layers of the paper's model of 32 layers, at 4 times the window."""

MICRO_BATCH_TOKENS = 32768
"""Tokens of a forward and backward pass that keep a GPU busy."""

CPU_MICRO_BATCH_TOKENS = 4096
"""The same for a CPU, whose caches are small."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for.

    Attributes:
        name: of the run and the file.
        model, revision: as `model.path` and `model.revision`.
        target_window: tokens.
        original_window: tokens; None for the model's own.
        texts: files or folders; empty for public corpora.
        device: as of `longred plan`.
        num_processes: GPUs; None for those of this machine.
    """

    name: str
    model: str
    revision: str | None
    target_window: int
    original_window: int | None
    texts: Sequence[str]
    device: str
    num_processes: int | None


@dataclass(frozen=True, slots=True)
class FirstRecipe:
    """A derived recipe.

    Attributes:
        entries: its lines, in the order of sections.
        plan: its cost.
    """

    entries: tuple[Entry, ...]
    plan: "RecipePlan"

    def text(self) -> str:
        """Return the YAML file."""
        return recipe_text(self.entries)


def derive(wish: Wish) -> FirstRecipe:
    """Derive a recipe.

    Raises:
        ConfigError: the windows do not suit the model, or the text is too short for them.
        PreflightError: the model or the text cannot be read.
    """
    from longred.cost.recipe import choose_device, choose_speeds, plan_recipe
    from longred.cost.shape import shape_of
    from longred.models.extension import extend_config

    wish = _pinned(wish)
    model = _model_config(wish)
    entries = [*_model(wish, model), *_extension(wish, model)]
    settings = _config(entries).extension
    extend_config(
        model,
        method=settings.method,
        original_window=settings.original_window,
        target_window=settings.target_window,
        **settings.settings(),
    )
    shape = shape_of(model)
    if wish.texts:
        entries += own_text(_config(entries), wish.texts, _folder(wish))
    else:
        entries += public_corpora()
    # Measures a CPU, with the types that are chosen below, so it comes after what may be refused.
    device, _ = choose_device(_config(entries), shape, device=wish.device)
    measured = _config([*entries, *_cpu_settings(wish)] if device == "cpu" else entries)
    speeds = choose_speeds(measured, shape, device=wish.device)
    entries += _method(_config(entries), shape, speeds, wish)
    entries += _steps(_config(entries))
    entries += _evaluation(_config(entries), wish, speeds)
    entries += _memory(_config(entries), shape, speeds)
    return FirstRecipe(tuple(entries), plan_recipe(_config(entries), shape, speeds))


def _pinned(wish: Wish) -> Wish:
    """Return the wish with what a hub name leaves open.

    The commit is that of the packaged recipes, else the newest one. Packaged recipes also know the
    window that a model was trained at, where its configuration says more.
    """
    from longred.models.find import is_hub_name, refuse_missing_folder
    from longred.models.hub import newest_commit

    if not is_hub_name(wish.model):
        return wish
    if not wish.revision:
        refuse_missing_folder(wish.model, "--model")
    known = {recipe.model.path: recipe for recipe in map(load_recipe, names())}
    recipe = known.get(wish.model)
    revision = wish.revision or (recipe and recipe.model.revision) or newest_commit(wish.model)
    window = wish.original_window or (recipe.original_window if recipe else None)
    return replace(wish, revision=revision, original_window=window)


def _model_config(wish: Wish) -> "PreTrainedConfig":
    """Return the model's configuration; that of a packaged recipe's model needs no network."""
    from longred.cost.shape import named_config
    from longred.models.find import is_hub_name
    from longred.models.load import load_config

    packaged = named_config(wish.model) if is_hub_name(wish.model) else None
    return packaged or load_config(_folder(wish))


def _folder(wish: Wish) -> Path:
    from longred.models.find import resolve_model

    return resolve_model(wish.model, wish.revision, weights=False)


def _model(wish: Wish, model: "PreTrainedConfig") -> Iterator[Entry]:
    own = int(model.max_position_embeddings)
    original = wish.original_window or own
    if wish.target_window <= original:
        raise ConfigError(
            f"--target-window: {wish.target_window} must be larger than the model's window, "
            f"{original}"
        )
    if original**2 <= 8 * wish.target_window:
        farthest = (original**2 - 1) // 8 // original * original
        advice = f"give {farthest}" if farthest > original else "take a model of a larger window"
        raise ConfigError(
            f"--target-window: {wish.target_window} is too far for skipped positions within "
            f"{original} tokens; {advice}"
        )
    yield Entry("name", wish.name)
    yield Entry("seed", 0)
    why = "tokens; the model's own window (max_position_embeddings)"
    if original != own:
        why = f"tokens it was trained at; the model's configuration says {own}"
    yield Entry("original_window", original, why)
    yield Entry("target_window", wish.target_window, "tokens")
    local = Path(wish.model).expanduser()
    yield Entry("model.path", str(local.resolve()) if local.exists() else wish.model)
    if wish.revision:
        yield Entry("model.revision", wish.revision, "a pinned commit; a branch can move")


def _extension(wish: Wish, model: "PreTrainedConfig") -> Iterator[Entry]:
    """Choose abf where it can be used, else the first method that can."""
    from longred.models.architectures import main_rope
    from longred.models.extension import usable_methods

    rope = main_rope(model)
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    able = [name for name, method in ROPE_METHODS.items() if kind in method.extends]
    if not able or not isinstance(theta, int | float):
        raise ConfigError(
            f"--model: no method rescales the RoPE of {wish.model} (rope_type {kind}); start from "
            "the model before its extension"
        )
    able = usable_methods(model, wish.target_window) or able
    if "abf" not in able:
        why = f"the model's RoPE is rescaled already ({kind})"
        if kind == "default":
            why = f"transformers 4 would not read abf; others: {', '.join(able[1:])}"
        yield Entry("extension.method", able[0], why)
        return
    own = int(model.max_position_embeddings)
    before = (wish.original_window or own) if kind == "default" else own
    factor = wish.target_window / before
    yield Entry("extension.method", "abf", "raises rope_theta; others: " + ", ".join(able[1:]))
    yield Entry(
        "extension.rope_theta",
        round(proposed_theta(theta, factor)),
        f"{theta:,.0f} x {factor:g} squared; published choices lie between the powers 1.3 and 2.7. "
        "`longred drift` compares values",
    )


def _method(
    config: RunConfig, shape: "ModelShape", speeds: "Speeds", wish: Wish
) -> Iterator[Entry]:
    """Choose the method, its layers, and the types and processes of the device."""
    original, target = config.original_window, config.target_window
    factor = target / original
    yield Entry(
        "training.method",
        "longred-c" if factor <= BEST_FOR_CREAM else "longred-u",
        "longred-c (CREAM's skipped positions) was better at 4 times the window, longred-u "
        f"(uniform ones) at 16 times; here it grows {factor:g} times",
    )
    yield Entry("training.baselines", [], "[cpt] also trains plain continued pre-training")
    rate = next(rate for least, rate in LEARNING_RATES if shape.num_parameters >= least)
    why = "the paper's" if rate == LEARNING_RATES[0][1] else "ours; the paper's 2e-5 is for 8B"
    yield Entry("training.learning_rate", rate, why)
    if speeds.kind == "cpu":
        yield from _cpu_types()
    processes = wish.num_processes or _num_gpus(wish.device)
    if processes > 1:
        yield Entry("training.parallel.num_processes", processes, "GPUs, one process each")
    layers = min(PAPER_LAYERS, max(2, round(shape.num_layers * PAPER_LAYERS / 32)))
    yield Entry(
        "selection.num_distill_layers",
        layers,
        f"by attention KL, and the last one counts; the model has {shape.num_layers}",
    )


def _cpu_types() -> Iterator[Entry]:
    yield Entry("training.dtype", "float32", "bfloat16 is slow on most CPUs")
    yield Entry("evaluation.dtype", "float32")


def _cpu_settings(wish: Wish) -> Iterator[Entry]:
    """Yield the settings of a CPU that change how fast it is."""
    yield from _cpu_types()
    tokens = max(wish.target_window, CPU_MICRO_BATCH_TOKENS)
    yield Entry("training.micro_batch_tokens", tokens)


def _num_gpus(device: str) -> int:
    """Return the GPUs of this machine; 1 if the recipe is for another one."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "auto" else 1


def _steps(config: RunConfig) -> Iterator[Entry]:
    """Name the derived sizes.

    Raises:
        ConfigError: the text does not give a single step.
    """
    training, num_tokens = config.training, config.data.num_tokens
    rows = training.rows(training.method)
    words = " + ".join(f"{rows[b]:,} x {training.block_lengths()[b]:,} {b}" for b in rows)
    processes = training.parallel.num_processes
    key, advice = "--text", "more text allows more steps"
    is_uneven = training.step_tokens > MANY_ROWS * processes * config.target_window
    if is_uneven:
        key, advice = "--target-window", "windows that are multiples of 1,024 allow smaller steps"
        other = at_nearest_window(config)
        if (
            other
            and unit_of(other) <= num_tokens
            and other.data == config.data.model_copy(update={"target_window": other.target_window})
        ):
            advice += f", and so does {other.target_window}"
    elif processes > 1:
        key, advice = "--gpus", f"each of {processes} processes needs its own blocks in a step"
    if training.step_tokens > num_tokens:
        raise ConfigError(
            f"{key}: the smallest step of whole blocks has {training.step_tokens:,} tokens "
            f"({words}), and the text gives {num_tokens:,}; {advice}"
        )
    if is_uneven and training.num_steps < MIN_STEPS:
        raise ConfigError(
            f"--target-window: {config.target_window} has so few factors in common with the other "
            f"block lengths that the smallest step has {training.step_tokens:,} tokens ({words}); "
            f"the text gives {training.num_steps} of them, and fewer than {MIN_STEPS} hardly "
            f"train; {advice}"
        )
    yield Entry("data.short_length", config.data.short_length, "tokens; distilled on such blocks")
    yield Entry("training.step_tokens", training.step_tokens, words)
    why = "about one epoch of data.num_tokens"
    if training.num_steps < MIN_STEPS:
        why += f"; fewer than {MIN_STEPS} hardly train: {advice}"
    yield Entry("training.num_steps", training.num_steps, why)


def _evaluation(config: RunConfig, wish: Wish, speeds: "Speeds") -> Iterator[Entry]:
    """Choose RULER's lengths, the tasks that fit the smallest of them, and the short suite."""
    lengths = config.evaluation.ruler.lengths
    yield Entry("evaluation.ruler.lengths", lengths, "tokens of prompt and answer")
    fitting = _fitting_tasks(config.evaluation.ruler, wish)
    if fitting != config.evaluation.ruler.tasks:
        yield Entry("evaluation.ruler.tasks", fitting, f"the ones that fit {min(lengths)} tokens")
    is_small = speeds.kind == "cpu"
    yield Entry("evaluation.ruler.num_samples", 20 if is_small else 100, "of each task and length")
    local = "demo: made from held-out text"
    remote = "short-core and paper: lm-eval's benchmarks, from the hub"
    suite, why = (
        ("demo", f"{local}; {remote}") if wish.texts else ("short-core", f"{remote}; {local}")
    )
    yield Entry("evaluation.short.suite", suite, why)
    if suite == "demo":
        yield Entry("evaluation.short.num_samples", 50 if is_small else 200, "of each task")


def _fitting_tasks(config: RulerConfig, wish: Wish) -> list[str]:
    """Return RULER's tasks that fit all lengths.

    Raises:
        ConfigError: none does.
    """
    from longred.evaluation.ruler.fitting import FULL_LENGTH
    from longred.evaluation.ruler.freeze import tasks_beyond
    from longred.models.load import load_tokenizer

    if min(config.lengths) >= FULL_LENGTH:
        return config.tasks
    beyond = tasks_beyond(config, load_tokenizer(_folder(wish)))
    fitting = [task for task in config.tasks if task not in beyond]
    if not fitting:
        raise ConfigError(
            f"--original-window: no RULER task fits {min(config.lengths)} tokens with this "
            f"tokenizer; the shortest needs {min(beyond.values())}"
        )
    return fitting


def _memory(config: RunConfig, shape: "ModelShape", speeds: "Speeds") -> Iterator[Entry]:
    """Choose micro-batches of one long row, and the settings that make the training fit."""
    from longred.cost.recipe import plan_recipe

    most = CPU_MICRO_BATCH_TOKENS if speeds.kind == "cpu" else MICRO_BATCH_TOKENS
    tokens = max(config.target_window, min(most, config.training.step_tokens))
    sized = config.model_copy(
        update={"training": config.training.model_copy(update={"micro_batch_tokens": tokens})}
    )
    yield Entry("training.micro_batch_tokens", tokens, "of one forward and backward pass")
    # More GPUs and adapters are for the user to choose; `longred plan` names them.
    others = ("training.parallel.", "training.method=")
    found = (
        remedy.settings
        for remedy in plan_recipe(sized, shape, speeds).advice
        if not any(setting.startswith(others) for setting in remedy.settings)
    )
    for setting in next(found, ()):
        key, _, value = setting.partition("=")
        yield Entry(key, yaml.safe_load(value), f"to fit {speeds.name}")


def _config(entries: Sequence[Entry]) -> RunConfig:
    """Return the settings so far; before the data are known, with the demo's text."""
    values = nested(entries)
    text = {"sources": [{"name": "text", "kind": "library"}], "num_tokens": STEP_TOKENS * MIN_STEPS}
    values["data"] = text | values.get("data", {})
    return load_recorded(values)
