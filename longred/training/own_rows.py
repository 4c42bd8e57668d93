"""Weights of a divided model, read by each process straight from the model's files: its own rows.

No process ever holds a whole model, on the host or on its device: the model is built on the meta
device, divided there, and then filled one weight at a time.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.errors import MismatchError, PreflightError
from longred.training.sharding import divided_like, local, rows_of
from longred.training.tensor_files import SavedTensors

_OLD_BUFFERS = r"rotary_emb\.inv_freq"
"""Kept in files by early versions of transformers; RoPE's frequencies follow from the config."""
_ADAPTED = ".base_layer"
"""What peft puts into the name of a layer that it gives adapters to."""


class OwnRows:
    """The files of a model's weights, checked against a model that they are to be read into.

    Args:
        model: on the meta device, before it is given adapters or divided.
        files: safetensors.

    Raises:
        MismatchError: the weights are those of another model.
        PreflightError: a file cannot be read.
    """

    def __init__(self, model: PreTrainedModel, files: Iterable[Path]) -> None:
        try:
            self.saved = SavedTensors(files)
        except MismatchError as error:
            raise PreflightError(f"{error}; fetch the model again") from error
        self._stored = {}
        named = dict(model.named_parameters(remove_duplicate=False))
        for name, weight in named.items():
            # Of weights that are one, one is in the files.
            same = [other for other in named if named[other] is weight and other in self.saved]
            self._stored[name] = same[0] if same else ""
        ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), _OLD_BUFFERS]
        problems = [f"{name} is missing" for name, stored in self._stored.items() if not stored]
        problems += [
            f"{name} is unknown"
            for name in self.saved
            if name not in named and not any(re.search(pattern, name) for pattern in ignored)
        ]
        problems += [
            f"{name} has shape {self.saved.shape(stored)} instead of {tuple(named[name].shape)}"
            for name, stored in self._stored.items()
            if stored and self.saved.shape(stored) != tuple(named[name].shape)
        ]
        if problems:
            raise MismatchError(
                f"{self.saved.paths[0].parent}: the weights do not fit the model's configuration: "
                f"{len(problems)} differences, first {problems[0]}"
            )

    def read_into(self, model: nn.Module, device: torch.device) -> None:
        """Give every weight that is still on the meta device this process's rows of its values.

        Args:
            model: divided, or a part of it; adapters, which no file holds, have their values.
            device: where the rows go.
        """
        filled: dict[Tensor, nn.Parameter] = {}
        for path, module in model.named_modules():
            for key, weight in list(module.named_parameters(recurse=False)):
                if not weight.is_meta:
                    continue
                if weight not in filled:
                    name = f"{path}.{key}".replace(_ADAPTED, "")
                    filled[weight] = self._read(self._stored[name], weight, device)
                setattr(module, key, filled[weight])

    def _read(self, stored: str, weight: Tensor, device: torch.device) -> nn.Parameter:
        own = local(weight)
        start = rows_of(weight).start
        # The rows that a file gives are a view of it; the weight's type may be another.
        rows = torch.empty_like(own, device=device)
        rows.copy_(self.saved.rows(stored, start, start + len(own)))
        values: Any = divided_like(weight, rows)
        return nn.Parameter(values, requires_grad=weight.requires_grad)
