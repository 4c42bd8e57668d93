"""Drift: how far the student's attention and hidden states are from the teacher's, layer by layer.

Both models run side by side, one decoder layer of each at a time, so that no more than two layers'
states exist at once. `Drift` is saved as JSON; `write_parquet` saves every cell as a long table.
Shapes: N blocks or decoder layers, B rows, T tokens, H heads, D hidden dimension, P bins of
positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from longred.attention.function import ATTENTION_NAME, Captured
from longred.attention.heads import head_dim
from longred.errors import ConfigError, MismatchError, NonFiniteLossError
from longred.method.rope import switches
from longred.models.architectures import main_rope
from longred.models.load import run_layers
from longred.profiling.attention_kl import attention_kl
from longred.progress import Progress
from longred.store.artifacts import storage_errors

FORMAT_VERSION = 2

SAME = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "vocab_size",
)
"""Settings in which two models must agree to be compared layer by layer."""


class Cells(NamedTuple):
    """Sums over tokens in float64, by decoder layer, head and bin of positions."""

    kl_NHP: Tensor
    kl_square_NHP: Tensor
    cosine_NP: Tensor
    cosine_square_NP: Tensor
    num_tokens_P: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Distances of the student from the teacher on the same text; lists run over layers.

    Attributes:
        format_version: version of the JSON form.
        num_layers: N, the number of decoder layers.
        num_heads: H, the number of query heads of a layer.
        num_tokens: tokens measured.
        attention_kl: mean KL(teacher || student) per query, nats; decoder layers 0 to N - 1.
        attention_kl_std: standard deviation over queries and heads.
        attention_kl_per_head: the mean of every head.
        attention_kl_per_head_std: its standard deviation over queries.
        hidden_similarity: mean cosine per token; hidden states 1 to N, the last after the norm.
        hidden_similarity_std: standard deviation of the cosine over tokens.
        position_starts: first position of every bin; a bin ends where the next one starts.
        position_tokens: tokens measured in every bin.
        attention_kl_by_position: a layer's mean KL in every bin.
        hidden_similarity_by_position: a layer's mean cosine in every bin.
        student_start: position of the student's first token; the teacher's is always 0.
        cells: the sums behind these values, by head and bin; not part of the JSON form.
    """

    format_version: int = FORMAT_VERSION
    num_layers: int
    num_heads: int
    num_tokens: int
    attention_kl: list[float]
    attention_kl_std: list[float]
    attention_kl_per_head: list[list[float]]
    attention_kl_per_head_std: list[list[float]]
    hidden_similarity: list[float]
    hidden_similarity_std: list[float]
    position_starts: list[int]
    position_tokens: list[int]
    attention_kl_by_position: list[list[float]]
    hidden_similarity_by_position: list[list[float]]
    student_start: int = 0
    cells: Cells | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cells"}

    def layer_scores(self, measure: str) -> list[float]:
        """Return the distance of each decoder layer from the teacher's.

        Args:
            measure: `attention_kl`, or `hidden_distance` (1 - mean cosine).
        """
        if measure == "hidden_distance":
            return [1.0 - similarity for similarity in self.hidden_similarity]
        return self.attention_kl

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Drift":
        """Return the drift that `to_json` wrote; it has no cells.

        Raises:
            MismatchError: another version wrote it.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise MismatchError(
                f"drift: format_version is {values.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}; measure the drift again"
            )
        return cls(**values)


def position_starts(length: int) -> list[int]:
    """Return the start of each bin of positions: 0, 2^k and 3/2 2^k, two bins an octave.

    Rescaled RoPE acts by distance, so its effects change over powers of the position.
    """
    powers = [2**k for k in range(length.bit_length())]
    starts = {start for power in powers for start in (power, power * 3 // 2)}
    return [0, *sorted(start for start in starts if start < length)]


def start_beyond(config: PreTrainedConfig, length: int) -> int:
    """Return where a student must read rows to show what its extension changed.

    A student with mixed windows is the original inside its window. Since RoPE is relative, the same
    row at the end of the target window differs from it only in the frequencies.

    Args:
        config: the student's.
        length: of the rows, tokens.

    Returns:
        The position of a row's first token; 0 for all other students.
    """
    return int(config.max_position_embeddings) - length if switches(main_rope(config)) else 0


@torch.no_grad()
def profile_drift(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids_NT: Tensor,
    *,
    batch_rows: int,
    student_start: int = 0,
    on_progress: Progress | None = None,
) -> Drift:
    """Measure attention KL and hidden similarity on rows of one document each.

    Args:
        teacher: the original model, with attention `longred`.
        student: the extended model, with attention `longred`.
        input_ids_NT: the text.
        batch_rows: number of rows run at once.
        student_start: position of the student's first token.
        on_progress: called after every batch.

    Raises:
        ConfigError: the models differ in more than weights and RoPE.
        ValueError: there is no text.
        NonFiniteLossError: a layer's drift is NaN or infinite.
    """
    _check(teacher, student, input_ids_NT)
    num_layers, num_heads = teacher.config.num_hidden_layers, teacher.config.num_attention_heads
    num_rows, length = input_ids_NT.shape
    starts = position_starts(length)
    sizes = torch.tensor([*starts, length]).diff()
    by_head, by_layer = (num_layers, num_heads, len(starts)), (num_layers, len(starts))
    kl_NHP, kl_square_NHP, cosine_NP, cosine_square_NP = (
        torch.zeros(shape, dtype=torch.float64) for shape in (by_head, by_head, by_layer, by_layer)
    )
    num_tokens_P = num_rows * sizes.double()
    cells = Cells(kl_NHP, kl_square_NHP, cosine_NP, cosine_square_NP, num_tokens_P)
    for start in range(0, num_rows, batch_rows):
        rows_BT = input_ids_NT[start : start + batch_rows]
        positions_BT = torch.arange(student_start, student_start + length).expand(rows_BT.shape)
        shifted = run_layers(student, rows_BT, position_ids_BT=positions_BT)
        pairs = zip(run_layers(teacher, rows_BT), shifted, strict=True)
        for layer, (original, extended) in enumerate(pairs):
            student_BTD = extended.hidden_BTD.to(original.hidden_BTD.device).float()
            cosine_BT = F.cosine_similarity(original.hidden_BTD.float(), student_BTD, dim=-1)
            _add(cells.cosine_NP[layer], cells.cosine_square_NP[layer], cosine_BT, sizes)
            kl_BHT = _layer_kl(original.captured, extended.captured)
            _add(cells.kl_NHP[layer], cells.kl_square_NHP[layer], kl_BHT, sizes)
        if on_progress is not None:
            on_progress(min(start + batch_rows, num_rows), num_rows, "rows")
    _check_finite(cells)
    return replace(_summary(cells, starts), student_start=student_start)


def _layer_kl(teacher: Captured, student: Captured) -> Tensor:
    return attention_kl(
        teacher.query_BHTd,
        teacher.key_BhTd,
        student.query_BHTd.to(teacher.query_BHTd),
        student.key_BhTd.to(teacher.key_BhTd),
        scale=teacher.scale,
        sliding_window=teacher.sliding_window,
        softcap=teacher.softcap,
    )


def _add(sum_P: Tensor, sum_of_squares_P: Tensor, value_BT: Tensor, sizes: Tensor) -> None:
    """Add the values of some rows, and their squares, to the sums of each bin of positions."""
    value_BT = value_BT.double()
    sums = (sum_P, value_BT.sum(dim=0)), (sum_of_squares_P, value_BT.square().sum(dim=0))
    for total_P, x_T in sums:
        bins = torch.split(x_T, sizes.tolist(), dim=-1)
        total_P.add_(torch.stack([x.sum(dim=-1) for x in bins], dim=-1).cpu())


def _summary(cells: Cells, starts: list[int]) -> Drift:
    num_layers, num_heads, _ = cells.kl_NHP.shape
    tokens = cells.num_tokens_P.sum()
    head_mean_NH, head_std_NH = _moments(
        cells.kl_NHP.sum(dim=2), cells.kl_square_NHP.sum(dim=2), tokens
    )
    _, layer_std_N = _moments(
        cells.kl_NHP.sum(dim=(1, 2)), cells.kl_square_NHP.sum(dim=(1, 2)), tokens * num_heads
    )
    cosine_N, cosine_std_N = _moments(
        cells.cosine_NP.sum(dim=1), cells.cosine_square_NP.sum(dim=1), tokens
    )
    return Drift(
        num_layers=num_layers,
        num_heads=num_heads,
        num_tokens=int(tokens),
        attention_kl=head_mean_NH.mean(dim=1).tolist(),
        attention_kl_std=layer_std_N.tolist(),
        attention_kl_per_head=head_mean_NH.tolist(),
        attention_kl_per_head_std=head_std_NH.tolist(),
        hidden_similarity=cosine_N.tolist(),
        hidden_similarity_std=cosine_std_N.tolist(),
        position_starts=starts,
        position_tokens=[int(count) for count in cells.num_tokens_P],
        attention_kl_by_position=(cells.kl_NHP.mean(dim=1) / cells.num_tokens_P).tolist(),
        hidden_similarity_by_position=(cells.cosine_NP / cells.num_tokens_P).tolist(),
        cells=cells,
    )


def _moments(total: Tensor, total_of_squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation."""
    mean = total / count
    return mean, (total_of_squares / count - mean.square()).clamp_min(0.0).sqrt()


def _check_finite(cells: Cells) -> None:
    finite_N = torch.isfinite(cells.kl_NHP).all(dim=2).all(dim=1)
    finite_N &= torch.isfinite(cells.cosine_NP).all(dim=1)
    if not bool(finite_N.all()):
        layer = int((~finite_N).nonzero()[0])
        raise NonFiniteLossError(
            f"the drift of decoder layer {layer} is not finite; check the weights of both models, "
            "or measure in float32"
        )


def _check(teacher: PreTrainedModel, student: PreTrainedModel, input_ids_NT: Tensor) -> None:
    if input_ids_NT.ndim != 2 or not input_ids_NT.numel():
        raise ValueError(f"input_ids_NT must hold rows of tokens, got {tuple(input_ids_NT.shape)}")
    for name in SAME:
        values = [
            head_dim(model.config) if name == "head_dim" else getattr(model.config, name, None)
            for model in (teacher, student)
        ]
        if values[0] != values[1]:
            raise ConfigError(
                f"the two models differ in {name} ({values[0]} and {values[1]}); drift compares "
                "models of one architecture and size"
            )
    for model in (teacher, student):
        if model.config._attn_implementation != ATTENTION_NAME:
            raise ValueError("drift needs models loaded with attention='longred'")


def write_parquet(drift: Drift, path: Path) -> None:
    """Write every cell of the drift as one row of a parquet table.

    Columns: `measure` (`attention_kl` in nats, or `hidden_similarity`), `layer` (decoder layer from
    0), `head` (null for hidden states), `position_start` and `position_end` (exclusive),
    `num_tokens`, `mean` and `std`. The file's metadata holds `format_version`.

    Args:
        drift: a measured drift; one that was read from JSON has no cells.
        path: the file to write.

    Raises:
        ValueError: the drift has no cells.
        StorageError: the disk is full.
    """
    import pyarrow
    import pyarrow.parquet

    if drift.cells is None:
        raise ValueError("a drift that was read from JSON has no cells to write")
    types = {
        "measure": pyarrow.string(),
        "layer": pyarrow.int32(),
        "head": pyarrow.int32(),
        "position_start": pyarrow.int64(),
        "position_end": pyarrow.int64(),
        "num_tokens": pyarrow.int64(),
        "mean": pyarrow.float64(),
        "std": pyarrow.float64(),
    }
    metadata = {"format_version": str(drift.format_version)}
    rows = [dict(zip(types, row, strict=True)) for row in _rows(drift, drift.cells)]
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema(list(types.items()), metadata))
    with storage_errors(path):
        pyarrow.parquet.write_table(table, path)


def _rows(drift: Drift, cells: Cells) -> Iterator[tuple[object, ...]]:
    """Yield the rows of the parquet table."""
    # Every row has position 0.
    length = drift.num_tokens // drift.position_tokens[0]
    ends = [*drift.position_starts[1:], length]
    bins = list(zip(drift.position_starts, ends, drift.position_tokens, strict=True))
    sums: list[tuple[str, int | None, Tensor, Tensor]] = [
        ("attention_kl", head, cells.kl_NHP[:, head], cells.kl_square_NHP[:, head])
        for head in range(drift.num_heads)
    ]
    sums.append(("hidden_similarity", None, cells.cosine_NP, cells.cosine_square_NP))
    for measure, head, total_NP, square_NP in sums:
        mean_NP, std_NP = (x.tolist() for x in _moments(total_NP, square_NP, cells.num_tokens_P))
        for layer in range(drift.num_layers):
            for a_bin, mean, std in zip(bins, mean_NP[layer], std_NP[layer], strict=True):
                yield measure, layer, head, *a_bin, mean, std
