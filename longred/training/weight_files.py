"""A model's weight files, read row by row into a sharded model."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.attention.function import ATTENTION_NAME
from longred.errors import MismatchError, PreflightError
from longred.models.first_layers import empty_model
from longred.models.folder import weight_files
from longred.models.load import load_config
from longred.training.sharding import local, row_range, sharded_like
from longred.training.tensor_files import SavedTensors

_OLD_BUFFERS = r"rotary_emb\.inv_freq"
"""Saved by early versions of transformers; RoPE's frequencies follow from the config."""
_ADAPTED = ".base_layer"
"""What peft inserts into the name of a layer with adapters."""
_EXPERT_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""Models stack all experts in one tensor; files hold them one by one, under the names of Qwen or
of Mixtral."""


class _Stored(NamedTuple):
    """Where files hold a weight: one tensor, or for each expert its parts, one below the other."""

    names: tuple[tuple[str, ...], ...]
    is_stacked: bool

    def shape(self, saved: SavedTensors) -> tuple[int, ...]:
        """Return the shape of the whole weight."""
        first = [saved.shape(name) for name in self.names[0]]
        if not self.is_stacked:
            return first[0]
        return (len(self.names), sum(shape[0] for shape in first), *first[0][1:])

    def rows(self, saved: SavedTensors, start: int, stop: int) -> Tensor:
        """Read the rows, or experts, from `start` to `stop`."""
        if not self.is_stacked:
            return saved.rows(self.names[0][0], start, stop)
        experts = [torch.cat([saved[name] for name in parts]) for parts in self.names[start:stop]]
        if experts:
            return torch.stack(experts)
        return torch.empty(0, *self.shape(saved)[1:])


def sharing_problem(folder: Path) -> str | None:
    """Return why several processes cannot load a model, each its own rows; None if they can.

    One process loads it through transformers, which knows more forms of files.
    """
    model = empty_model(load_config(folder), attention=ATTENTION_NAME)
    model.tie_weights()
    try:
        WeightFiles(model, weight_files(folder))
    except MismatchError as error:
        return f"train this model in one process; several cannot read its files: {error}"
    return None


class WeightFiles:
    """A model's weight files, checked against the model that they will fill.

    Args:
        model: on the meta device, before adapters are added and before it is sharded.
        files: safetensors files.

    Raises:
        MismatchError: the weights belong to another model.
        PreflightError: a file cannot be read.
    """

    def __init__(self, model: PreTrainedModel, files: Iterable[Path]) -> None:
        try:
            self.saved = SavedTensors(files)
        except MismatchError as error:
            raise PreflightError(f"{error}; fetch the model again") from error
        named = dict(model.named_parameters(remove_duplicate=False))
        self._buffers = sorted(set(model.state_dict()) - named.keys())
        buffers = {name: model.get_buffer(name) for name in self._buffers}
        self._stored: dict[str, _Stored] = {}
        problems = []
        for name, weight in {**named, **buffers}.items():
            # Files hold tied weights once, under any of their names.
            names = [name, *(n for n, w in named.items() if w is weight)]
            stored = next(filter(None, (self._find(n, weight) for n in names)), None)
            if stored is None:
                problems.append(f"{name} is missing")
                continue
            self._stored[name] = stored
            shape, saved_shape = tuple(weight.shape), stored.shape(self.saved)
            if saved_shape != shape:
                problems.append(f"{name} has shape {saved_shape} instead of {shape}")
        known = {
            each for stored in self._stored.values() for parts in stored.names for each in parts
        } | named.keys()
        ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), _OLD_BUFFERS]
        problems += [
            f"{name} is unknown"
            for name in self.saved
            if name not in known and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if problems:
            raise MismatchError(
                f"{self.saved.paths[0].parent}: the weights do not fit the model's configuration: "
                f"{len(problems)} differences, first {problems[0]}"
            )

    def fill(self, model: nn.Module, device: torch.device) -> None:
        """Read the saved buffers, and this process's rows of every weight on the meta device.

        Args:
            model: sharded; adapters, which no file holds, already have values.
            device: where the rows are loaded.
        """
        filled: dict[Tensor, nn.Parameter] = {}
        for path, module in model.named_modules():
            for key, weight in list(module.named_parameters(recurse=False)):
                if not weight.is_meta:
                    continue
                if weight not in filled:
                    stored = self._stored[f"{path}.{key}".replace(_ADAPTED, "")]
                    # The file's type may differ from the weight's.
                    rows = torch.empty_like(local(weight), device=device)
                    rows.copy_(stored.rows(self.saved, *row_range(weight)))
                    values: Any = sharded_like(weight, rows)
                    filled[weight] = nn.Parameter(values, requires_grad=weight.requires_grad)
                setattr(module, key, filled[weight])
            for key, buffer in list(module.named_buffers(recurse=False)):
                name = f"{path}.{key}".replace(_ADAPTED, "")
                if name in self._buffers:
                    stored = self._stored[name]
                    # Apertus saves numbers.
                    read = (
                        stored.rows(self.saved, 0, len(buffer))
                        if buffer.ndim
                        else self.saved[stored.names[0][0]]
                    )
                    setattr(module, key, read.to(device, buffer.dtype))

    def _find(self, name: str, weight: Tensor) -> _Stored | None:
        """Return where the files hold a weight of the model; None if they do not."""
        # Mixtral's files name the module before it was renamed.
        for known in (name, name.replace(".mlp.", ".block_sparse_moe.")):
            if known in self.saved:
                return _Stored(((known,),), is_stacked=False)
            experts, _, last = known.rpartition(".")
            for parts in _EXPERT_PARTS.get(last, ()):
                names = [[f"{experts}.{e}.{p}.weight" for p in parts] for e in range(len(weight))]
                if experts.endswith(".experts") and all(
                    n in self.saved for each in names for n in each
                ):
                    return _Stored(tuple(map(tuple, names)), is_stacked=True)
        return None
