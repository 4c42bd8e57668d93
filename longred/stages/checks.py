"""What a run would refuse, stage by stage; `preflight` asks for it before the first stage."""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from longred.config import RunConfig
from longred.errors import ConfigError, PreflightError
from longred.method.methods import METHODS
from longred.progress import size
from longred.runs.scope import STAGES
from longred.store.artifacts import Store, existing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longred.cost.shape import ModelShape


@dataclass(frozen=True)
class Preflight:
    """What is checked before a run.

    Attributes:
        config: settings of the run.
        stages: the stages that will be built.
        methods: the methods that will be trained; None for all.
        is_here: whether they run on this machine.
        reads_text: whether to look at the text of the data.
        needs_model: whether a model that cannot be fetched is a problem.
        checks_memory: whether to check the memory of this machine.
        shakes_hands: whether to compare training with the model's own code, which reads the weights
            of its first layers.
        works: work folders of stages that may be resumed; their checkpoints need no more space.
    """

    config: RunConfig
    stages: Collection[str] = STAGES
    methods: Collection[str] | None = None
    is_here: bool = True
    reads_text: bool = True
    needs_model: bool = True
    checks_memory: bool = True
    shakes_hands: bool = False
    works: Collection[Path] = ()

    @cached_property
    def model(self) -> "PreTrainedConfig":
        """Configuration of the original model."""
        from longred.cost.recipe import config_of_model

        return config_of_model(self.config)

    @cached_property
    def shape(self) -> "ModelShape":
        """Shape of the original model."""
        from longred.cost.shape import shape_of

        return shape_of(self.model)

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """Folder of the model's small files; None if they cannot be fetched."""
        from longred.models.load import resolve_model

        model = self.config.model
        try:
            return resolve_model(model.path, model.revision, weights=False)
        except PreflightError:
            if self.needs_model:
                raise
            return None

    def trains(self, method: str) -> bool:
        """Return whether a method will be trained, for itself or for one that merges it."""
        if self.methods is None:
            return True
        return method in {METHODS[name].merges or name for name in self.methods}

    def extended(self, at_window: RunConfig) -> "PreTrainedConfig":
        """Return the configuration of the model extended to a window of the run.

        Raises:
            ConfigError: the model cannot be extended so; names an intermediate window.
        """
        from longred.models.extension import extend_config

        extension = at_window.extension
        try:
            return extend_config(
                self.model,
                method=extension.method,
                original_window=extension.original_window,
                target_window=extension.target_window,
                **extension.settings(),
            )
        except ConfigError as error:
            steps = [window.target_window for window in self.config.extension.windows]
            if extension.target_window not in steps:
                raise
            number = steps.index(extension.target_window)
            message = f"extension.windows.{number}: at this window, {error}"
            raise ConfigError(message) from error


def _check_windows(asked: Preflight) -> Iterator[str]:
    """Check the extension at every window, and the device of a search for factors."""
    from longred.models.load import choose_device

    search = asked.config.extension.search
    if search.num_rounds and asked.is_here:
        choose_device(search.device, "extension.search.device")
    for at_window in (*asked.config.windows(), asked.config):
        asked.extended(at_window)
    own, original = asked.model.max_position_embeddings, asked.config.original_window
    if original < own:
        yield (
            f"original_window: {original:,} is less than the {own:,} positions of the model's "
            "configuration (max_position_embeddings); right only if it was trained at "
            f"{original:,}"
        )


def _check_quotas(asked: Preflight) -> Iterator[str]:
    """Check what the data have to provide, and the texts that they must not contain."""
    from longred.data.decontamination import evaluation_texts
    from longred.data.quotas import source_quotas
    from longred.data.sources import check_sources

    # The last window needs most: a number of tokens that is enough for it is enough for all.
    for at_window in (asked.config, *asked.config.windows()):
        source_quotas(at_window.data)
    check_sources(asked.config.data)
    if asked.config.data.decontaminate:
        evaluation_texts(tuple(asked.config.data.decontaminate))
    wanted, held_out = asked.config.profiling.num_tokens, asked.config.data.num_held_out_tokens
    if wanted > held_out:
        yield (
            f"profiling.num_tokens: {wanted:,} are wanted and data.num_held_out_tokens holds out "
            f"{held_out:,}, which profiling then uses"
        )


def _check_executor(asked: Preflight) -> None:
    """Check that this machine has the executor of the data stage."""
    kind = asked.config.data.executor.kind
    if asked.is_here and kind != "pool":
        _check_package("datatrove", f"data.executor.kind: {kind}", "pip install longred[cluster]")
        if kind == "ray":
            _check_package("ray", "data.executor.kind: ray", "pip install ray")
        if kind == "slurm" and shutil.which("sbatch") is None:
            raise PreflightError(
                "data.executor.kind: slurm needs the command sbatch, which is not on this machine; "
                "start the run where jobs are submitted, or use pool"
            )


def _check_text(asked: Preflight) -> Iterator[str]:
    """Check that there is enough text."""
    from longred.data.estimate import refuse_too_little

    folder = asked.tokenizer_folder
    if not asked.reads_text or folder is None:
        return
    unseen: list[str] = []
    for at_window in (*asked.config.windows(), asked.config):
        unseen = refuse_too_little(at_window.data, folder)
    if unseen:
        yield f"data.sources: not looked at, since not on this machine: {', '.join(unseen)}"


def _check_selection(asked: Preflight) -> None:
    from longred.method.selection import select_layers

    # The scores do not matter: a selection that fails on equal scores fails on any.
    scores = [1.0] * asked.model.num_hidden_layers
    select_layers(scores, **asked.config.selection.model_dump())


def _check_epochs(asked: Preflight) -> Iterator[str]:
    from longred.cost.epochs import epochs_of, refuse_too_many, warning

    found = [one for one in epochs_of(asked.config) if asked.trains(one.method)]
    refuse_too_many(asked.config, found)
    if text := warning(found):
        yield text


def _check_profiling(asked: Preflight) -> None:
    from longred.models.load import choose_device

    if asked.is_here:
        choose_device(asked.config.profiling.device, "profiling.device")


def _check_trainings(asked: Preflight) -> None:
    """Check that trainings suit their model and this machine.

    If the user's own command starts the trainers, they may run on other machines, and the trainers
    check those themselves.
    """
    import torch

    from longred.attention.backends import choose_backend, needs_of
    from longred.cost.fit import refuse_what_cannot_fit
    from longred.cost.recipe import jobs, lengths_of, ways_out
    from longred.models.load import choose_device, resolve_model
    from longred.training.launch import LAUNCHER
    from longred.training.machine import check_gpus, check_machine, check_model

    config, shape = asked.config, asked.shape
    wanted = [job for job in jobs(config, shape) if asked.trains(job.method)]
    extended = {w.target_window: asked.extended(w) for w in (*config.windows(), config)}
    for job in wanted:
        check_model(job, extended[job.target_window])
    if not wanted or not asked.is_here or os.environ.get(LAUNCHER):
        return
    device = choose_device(config.training.device, "training.device")
    for job in wanted:
        check_machine(job, device)
        needs = needs_of(extended[job.target_window], device, getattr(torch, job.dtype))
        choose_backend(job.attention_backend, needs)
    num_here = config.training.parallel.num_processes
    if device.type == "cuda":
        check_gpus(num_here)
    if asked.checks_memory:
        sized = [(job, lengths_of(config, job)) for job in wanted]
        refuse_what_cannot_fit(shape, sized, device, num_here=num_here, **ways_out(config))
    if asked.shakes_hands:
        from longred.training.handshake import require

        folder = resolve_model(config.model.path, config.model.revision)
        require(
            folder,
            extended[config.target_window],
            device=device,
            backend=config.attention.backend,
            dtype=getattr(torch, config.training.dtype),
        )


def _check_disk(asked: Preflight) -> None:
    """Check the disk space of all trainings: their results, and the checkpoints of one."""
    from longred.cost.memory import disk_bytes
    from longred.cost.recipe import jobs

    if not asked.is_here:
        return
    root = Store(asked.config.store.path).root
    free = shutil.disk_usage(existing_folder(root)).free
    saved = sum(
        path.stat().st_size
        for work in asked.works
        for path in (work / "checkpoints").rglob("*")
        if path.is_file()
    )
    results = 0.0
    for job in jobs(asked.config, asked.shape):
        if not asked.trains(job.method):
            continue
        disk = disk_bytes(asked.shape, job)
        results += disk["result"]
        needed = results + disk["checkpoints"] - saved
        if needed > free:
            more = " more" if saved else ""
            raise PreflightError(
                f"store.path: checkpoints and results of the trainings up to {job.method} need "
                f"{size(needed)}{more} and {size(free)} are free at {root}; free some space, set "
                "store.path elsewhere, keep fewer (training.num_checkpoints), or keep moments in 8 "
                "bits (training.optimizer=adamw8bit)"
            )


def _check_questions(asked: Preflight) -> Iterator[str]:
    """Check RULER's tasks and lengths, the short tasks, and the judge of perplexity."""
    from longred.evaluation.ruler.freeze import check_lengths
    from longred.evaluation.ruler.materials import reads_hub
    from longred.evaluation.samples import tokenizer_sha256
    from longred.evaluation.suites import suite_of
    from longred.models.find import is_hub_name
    from longred.models.load import load_tokenizer, resolve_model

    config = asked.config.evaluation
    missing = []
    for task in suite_of(config):
        if task.source == "published":
            from longred.evaluation.published import check_task

            check_task(task)
        if task.source == "lm-eval":
            from longred.evaluation.lm_eval_catalog import leaf_settings

            limit, allowed = config.short.limit, config.short.allow_code_execution
            try:
                leaf_settings(task, limit=limit, allow_code=allowed)
            except PreflightError as error:
                missing.append(str(error))
    if missing and config.short.on_missing == "error":
        raise PreflightError("\n".join(missing))
    if asked.tokenizer_folder is None:
        yield "evaluation.ruler.lengths: not checked, since the model's tokenizer is not here"
        return
    try:
        tokenizer = load_tokenizer(asked.tokenizer_folder, add_bos=config.add_bos_token)
        check_lengths(config.ruler, tokenizer)
    except PreflightError as error:
        if asked.needs_model or not reads_hub(config.ruler):
            raise
        yield f"evaluation.ruler.lengths: not checked ({error})"
    name, key = config.perplexity.judge, "evaluation.perplexity.judge"
    if name and asked.is_here:
        # Weights are fetched when they are needed, not by a check.
        is_remote, revision = is_hub_name(name), config.perplexity.judge_revision
        try:
            judge = resolve_model(name, revision, weights=not is_remote, key=key)
        except PreflightError:
            if asked.needs_model or not is_remote:
                raise
            yield f"{key}: not checked, since its tokenizer is not here"
            return
        if tokenizer_sha256(judge) != tokenizer_sha256(asked.tokenizer_folder):
            raise PreflightError(
                f"evaluation.perplexity.judge: {judge} has another tokenizer than "
                f"{asked.tokenizer_folder}; choose a judge that reads the same tokens"
            )


def _check_evaluation(asked: Preflight) -> None:
    """Check that models can be evaluated as configured, on this machine."""
    import torch

    from longred.attention.backends import choose_backend, needs_of
    from longred.attention.reindexed import SCHEMES, rope_problem
    from longred.evaluation.model import is_chat, refused_reference
    from longred.models.load import choose_device

    config = asked.config.evaluation
    if asked.tokenizer_folder is not None:
        is_chat(config.chat_template, asked.tokenizer_folder)
    for name in config.references:
        if name in SCHEMES and (problem := rope_problem(asked.model)):
            raise ConfigError(refused_reference(name, problem))
    if not asked.is_here:
        return
    device = choose_device(config.device, "evaluation.device")
    needs = needs_of(asked.model, device, getattr(torch, config.dtype))
    choose_backend(config.attention_backend, needs)
    num_gpus = torch.cuda.device_count()
    if config.device != "cpu" and 0 < num_gpus < config.num_processes:
        raise PreflightError(
            f"evaluation.num_processes: {config.num_processes} processes need a GPU each and there "
            f"are {num_gpus}; set it to {num_gpus}"
        )
    if config.backend == "vllm":
        _check_package("vllm", "evaluation.backend: vllm", "pip install longred[vllm]")


def _check_package(name: str, key: str, install: str) -> None:
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise PreflightError(f"{key} needs the package {name}, which is not installed; {install}")


CHECKS: Sequence[tuple[str, Callable[[Preflight], Iterable[str] | None]]] = (
    ("extension", _check_windows),
    ("data", _check_quotas),
    ("data", _check_executor),
    ("selection", _check_selection),
    ("training", _check_epochs),
    ("profiling", _check_profiling),
    ("training", _check_trainings),
    ("training", _check_disk),
    ("evaluation", _check_questions),
    ("evaluation", _check_evaluation),
    ("data", _check_text),
)
"""The checks, each with the stage that would refuse; they return warnings. The slowest is last."""
