"""Low-rank adapters (arXiv 2106.09685), trained instead of the weights.

With its adapters off and the original RoPE the student is the teacher (`load.teacher_of_adapters`),
so no second copy of the weights is held. peft is imported only by trainings that use adapters.
"""

import contextlib
import copy
import logging
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
from longred.training.layers.masters import stacked_experts

log = logging.getLogger(__name__)

ADAPTERS_NAME = "adapters"
"""Folder for the adapters inside a student's folder; next to the merged weights, loading would add
them twice.
"""


def check_weights(student: Path, original: Path) -> None:
    """Refuse adapters on weights that differ from the teacher's.

    Args:
        student: folder of the extended model.
        original: folder of the original model.

    Raises:
        ConfigError: the student's weights are not the original's.
    """
    if weight_files(student, original=original)[0].parent != weight_files(original)[0].parent:
        raise ConfigError(
            "training.method: adapters need the original model's own weights, since the teacher is "
            f"the student without them, but {student} has others (trained or merged ones)"
        )


def check_targets(settings: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Refuse adapters on layers that the model lacks; warn of those larger than their layer.

    A rank above a layer's smaller side is allowed, as in peft: a published recipe takes 1,024 on
    any model (LinearARD, arXiv 2604.00004).

    Args:
        settings: `rank` and `targets`.
        config: of the model.

    Raises:
        ConfigError: a target is no linear layer of the model.
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
        log.warning(
            "training.lora.rank: %d is more than the smaller side of %s, %d: its adapters can hold "
            "more numbers than the layer and learn no more than rank %d",
            *(settings["rank"], target, side, side),
        )


def round_linear_layers(model: PreTrainedModel) -> None:
    """Convert frozen linear layers, except the LM head, and experts to bfloat16.

    Autocast would round them on every use. The LM head may be tied to the input embedding, which
    is no linear layer and stays in float32 under autocast.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        is_linear = isinstance(module, nn.Linear) and module is not head
        is_frozen = not any(weight.requires_grad for weight in module.parameters())
        if is_frozen and (is_linear or stacked_experts(module)):
            module.to(torch.bfloat16)


def add_adapters(model: PreTrainedModel, settings: Mapping[str, Any], *, dtype: str) -> None:
    """Freeze a model and add adapters that do not change its output yet.

    Frozen linear layers are stored in the compute type, adapters in float32.

    Args:
        model: changed in place; its own weights may be on the meta device, adapters never are.
        settings: `rank`, `alpha` and `targets`.
        dtype: compute type, `bfloat16` or `float32`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    if dtype == "bfloat16":
        round_linear_layers(model)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        # Full names: peft matches short ones by suffix, in other modules too.
        target_modules=[
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and module is not head
            and name.rpartition(".")[2] in settings["targets"]
        ],
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
    """Replace meta weights of linear layers by expanded scalars on the host inside the block.

    peft moves adapters to the device of their layer; on the meta device they would lose their
    initial values.
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


def merged(model: PreTrainedModel, student: Path, original: Path) -> PreTrainedModel:
    """Return the student in float32 with the adapters' products added to its weights.

    Args:
        model: the student with adapters.
        student: folder of the extended model.
        original: folder of the original model.
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
    """Write only the adapters, in the format that peft loads onto the extended model.

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
