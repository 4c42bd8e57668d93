"""Low-rank adapters (arXiv 2106.09685): trained in place of the weights.

With the adapters off and the original RoPE the student is the teacher, so that no second copy of
the weights is held.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from longred.errors import ConfigError
from longred.models import load as models
from longred.models.folder import weight_files
from longred.store.artifacts import storage_errors
from longred.training.teacher import Teacher, round_linear_layers

ADAPTERS_NAME = "adapters"
"""Folder of the adapters alone inside a student's; beside its weights they would be added twice."""


def check_weights(student: Path, original: Path) -> None:
    """Refuse adapters on weights that are not the teacher's.

    Args:
        student: the extended model's folder.
        original: the original model's.

    Raises:
        ConfigError: the student's weights are not the original's.
    """
    if weight_files(student, original=original)[0].parent != weight_files(original)[0].parent:
        raise ConfigError(
            "training.method: adapters need the original model's own weights, since the teacher is "
            f"the student without them, but {student} has others (trained or merged ones)"
        )


def check_places(settings: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Refuse adapters that the model has no place for.

    Args:
        settings: `rank` and `targets`.
        config: the model's.

    Raises:
        ConfigError: a target is no linear layer of the model, or the rank is larger than a target's
            smaller side.
    """
    with torch.device("meta"):
        loader: Any = AutoModelForCausalLM
        model = loader.from_config(copy.deepcopy(config), trust_remote_code=False)
    sides: dict[str, int] = {}
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear):
            last = name.rpartition(".")[2]
            sides[last] = min(sides.get(last, module.in_features), *module.weight.shape)
    unknown = [target for target in settings["targets"] if target not in sides]
    if unknown:
        raise ConfigError(
            f"training.lora.targets: {', '.join(unknown)} is no linear layer of this model; it has "
            f"{', '.join(sorted(sides))}"
        )
    side, target = min((sides[target], target) for target in settings["targets"])
    if settings["rank"] > side:
        raise ConfigError(
            f"training.lora.rank: {settings['rank']} is more than the smaller side of {target}, "
            f"{side}; give a smaller rank"
        )


def add_adapters(model: PreTrainedModel, settings: Mapping[str, Any], *, dtype: str) -> None:
    """Freeze a model and give it adapters that change nothing yet.

    Linear layers are frozen in the compute type, which autocast would round them to anyway; the
    adapters are trained in float32.

    Args:
        model: changed in place; its own weights may be on the meta device, adapters never are.
        settings: `rank`, `alpha` and `targets`.
        dtype: the compute type, `bfloat16` or `float32`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    if dtype == "bfloat16":
        round_linear_layers(model)
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=_paths(model, settings["targets"]),
        lora_dropout=0.0,
        bias="none",
    )
    with _on_host(model):
        inject_adapter_in_model(config, model)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


@contextlib.contextmanager
def _on_host(model: PreTrainedModel) -> Iterator[None]:
    """Let linear layers on the meta device look as if they were on the host, and take no memory.

    peft moves adapters to where their layer is, and on the meta device they would lose the values
    that they were drawn with.
    """
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.is_meta]
    weights = [linear.weight for linear in linears]
    for linear, weight in zip(linears, weights, strict=True):
        shape = torch.empty(1, dtype=weight.dtype).expand(weight.shape)
        linear.weight = nn.Parameter(shape, requires_grad=False)
    try:
        yield
    finally:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = weight


def without_adapters(model: PreTrainedModel, original: Path) -> Teacher:
    """Return the teacher inside a student with adapters.

    Args:
        model: the student.
        original: the original model's folder, whose RoPE the teacher has.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: Any = model.base_model
    kind = type(base.rotary_emb)
    rotary = kind(config=models.load_config(original)).to(model.device)
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    @contextlib.contextmanager
    def opened() -> Iterator[PreTrainedModel]:
        students, was_training = base.rotary_emb, model.training
        base.rotary_emb = rotary
        model.train(False)
        for module in adapted:
            module.enable_adapters(False)
        try:
            yield model
        finally:
            base.rotary_emb = students
            model.train(was_training)
            for module in adapted:
                module.enable_adapters(True)

    return opened


def merged(model: PreTrainedModel, student: Path, original: Path) -> PreTrainedModel:
    """Return the student's weights in float32 with the adapters' products added to them.

    Args:
        model: the student with adapters.
        student: the extended model's folder.
        original: the original model's.
    """
    from peft.tuners.lora import LoraLayer

    whole = models.load_model(student, dtype=torch.float32, original=original)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                adapter: Any = module
                delta = adapter.get_delta_weight("default")
                whole.get_submodule(name).weight += delta.to("cpu", torch.float32)
    return whole


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters alone, as peft loads them onto the extended model.

    Raises:
        StorageError: the disk is full.
    """
    from peft import get_peft_model_state_dict

    with storage_errors(folder):
        folder.mkdir()
        config: Any = model.peft_config["default"]
        config.save_pretrained(folder)
        tensors = get_peft_model_state_dict(model, adapter_name="default")
        save_file(
            {f"base_model.model.{name}": t.contiguous().cpu() for name, t in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )


def _paths(model: PreTrainedModel, targets: list[str]) -> list[str]:
    """Return the full names of the decoder's target layers, so that no other layer matches."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()  # type: ignore[no-untyped-call]
        and name.rpartition(".")[2] in targets
    ]
