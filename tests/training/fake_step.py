"""Measure memory, FLOPs and traffic of the trainer's micro-batches on tensors without data.

The trainer's code builds, prepares and runs the models under torch's FakeTensorMode; only the
weights' values are missing. The device is a fake CPU: torch without CUDA crashes in the backward
pass of fake CUDA tensors. Attention is the fused CPU operator, which takes and saves the same
tensors as the flash and cuDNN kernels: query, key, value, output and log-sum-exp. Each function of
`layers.fused` counts as one operator, as if compiled on a GPU: no intermediate is held. Products
that write float32 directly on a GPU do so here.

As a script: `python tests/training/fake_step.py [RECIPE] [--layers N] [key=value …]` prints a table
by bucket next to the plan.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel

from longred.data.loader import Rows
from longred.method.job import TrainingJob
from longred.method.methods import Term
from longred.models import load as models
from longred.objectives import cross_entropy
from longred.training.layers import compiling, masters
from longred.training.load import load_student
from longred.training.step import (
    MicroBatch,
    Objectives,
    fixed_weights,
    micro_batches,
    term_counts,
)
from longred.training.trainer import Trainer

GIB = 2**30
CPU = torch.device("cpu")

_PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::_scaled_mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::baddbmm": (1, 2),
}
"""Matrix products, and the positions of the matrices in their arguments."""

_GATHERS = ("aten::embedding", "aten::index", "aten::gather", "aten::nll_loss_forward")
"""Operators that read a few values of a large tensor."""

_FILLS = ("aten::zero_", "aten::fill_")


@dataclass(frozen=True, slots=True)
class FakeStep:
    """Measurements of one micro-batch.

    Attributes:
        bucket: its bucket.
        tokens: its number of tokens.
        losses_bytes, backward_bytes: peak memory until the losses are computed, and in the
            backward pass, without the weights and their gradients.
        weight_bytes, teacher_bytes: size of the student's and of the teacher's weights.
        products: number of matrix products, including the LM head's and RoPE's angles.
        product_flops: FLOPs of all these products.
        attention_forward, attention_backward: causal FLOPs of the attention operators as executed:
            two products forward, five backward.
        moved_bytes: what all other operators read and wrote.
        moved_by_operator: the same by name.
    """

    bucket: str
    tokens: int
    losses_bytes: int
    backward_bytes: int
    weight_bytes: int
    teacher_bytes: int
    products: int
    product_flops: float
    attention_forward: float
    attention_backward: float
    moved_bytes: float
    moved_by_operator: Mapping[str, float]

    @property
    def peak_bytes(self) -> int:
        """Peak memory without the weights and their gradients."""
        return max(self.losses_bytes, self.backward_bytes)


class Recorder(TorchDispatchMode):
    """Follows storages and counts operators.

    Attributes:
        now, peak: bytes allocated since the start and still alive, and their maximum.
        products, product_flops, attention_forward, attention_backward: as in `FakeStep`.
        moved: bytes read and written by other operators, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.products = 0
        self.product_flops = self.attention_forward = self.attention_backward = 0.0
        self.moved: Counter[str] = Counter()
        self._seen: dict[int, weakref.ref] = {}
        self._is_inside = False

    def as_one(self, function: Callable[..., Any], _: Tensor) -> Callable[..., Any]:
        """Return a function that counts as one operator."""

        def run(*args: Any) -> Any:
            self._is_inside = True
            try:
                output = function(*args)
            finally:
                self._is_inside = False
            inputs, outputs = (
                [x for x in tree_leaves(some) if isinstance(x, Tensor)] for some in (args, output)
            )
            for tensor in outputs:
                self._follow(tensor.untyped_storage())
            name = f"fused::{function.__name__}"
            self.moved[name] += sum(map(_bytes, [*inputs, *outputs]))
            return output

        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if self._is_inside or name.startswith("prim::"):
            return output
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        given = {id(tensor.untyped_storage()) for tensor in inputs}
        made = [tensor for tensor in outputs if id(tensor.untyped_storage()) not in given]
        for tensor in made:
            self._follow(tensor.untyped_storage())
        if name in _PRODUCTS:
            self._multiplied(*(args[place].shape for place in _PRODUCTS[name]))
        elif "_scaled_dot_product" in name:
            self._attended(name, args)
        elif made or func._schema.is_mutable:
            self.moved[name] += _moved(name, inputs, outputs)
        return output

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen and self._seen[key]() is storage:
            return

        def freed(_: object) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _multiplied(self, left: torch.Size, right: torch.Size) -> None:
        self.products += 1
        self.product_flops += 2.0 * left.numel() * right[-1]

    def _attended(self, name: str, args: Sequence[Any]) -> None:
        is_backward = name.endswith("backward")
        query, key = args[1:3] if is_backward else args[:2]
        is_causal = args[7 if is_backward else 4]
        num_keys = key.shape[2]
        keys = (num_keys + 1) / 2 if is_causal else num_keys
        flops = 2.0 * query.numel() * keys
        if is_backward:
            self.attention_backward += 5 * flops
        else:
            self.attention_forward += 2 * flops


def _moved(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Return what an operator has to read and write, bytes."""
    if "empty" in name:
        return 0.0
    written = sum(map(_bytes, outputs))
    if name in _FILLS:
        return written
    if name in _GATHERS:
        return 2.0 * written
    if name.startswith("aten::index_put"):
        return 3.0 * _bytes(inputs[-1])
    if name == "aten::copy_":
        return written + _bytes(inputs[-1])
    return written + sum(map(_bytes, inputs))


def _bytes(tensor: Tensor) -> float:
    # An expanded tensor reads fewer values than its shape has.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def measure_micro_batch(config: PreTrainedConfig, job: TrainingJob, bucket: str) -> FakeStep:
    """Run the forward and backward pass of a bucket's first micro-batch on fake tensors.

    Gradients already exist and are added to, as in all micro-batches of a step but the first.

    Args:
        config: the model's, teacher and student alike.
        job: the training; its folders are not read. Row lengths are the job's windows, and 1,024
            tokens for short rows, or all of the short window where that is less.
        bucket: `long`, `short` or `original`.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        job = dataclasses.replace(
            job, data_folder=folder, student_folder=folder, teacher_folder=folder
        )
        batch = _first_micro_batch(job, bucket)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with _without_values():
            student = load_student(job, CPU)
            weights = _give_storage(student, fake)
            trainer: Any = types.SimpleNamespace(job=job, device=CPU, student=student)
            teacher = Trainer._load_teacher(trainer, None)
        frozen = {}
        if teacher is not None and not job.recipe.trains_adapters:
            with teacher() as model:
                frozen = _give_storage(model, fake)
        with fake:
            for weight in weights.values():
                if weight.requires_grad:
                    weight.grad = torch.empty_like(weight)
            objectives = Objectives(job, student, teacher, CPU)
            tensors = {
                item.name: fake.from_tensor(value)
                for item in dataclasses.fields(batch)
                if isinstance(value := getattr(batch, item.name), Tensor)
            }
            batch = dataclasses.replace(batch, **tensors)
            peaks = []

            def losses(batch: MicroBatch) -> Mapping[Term, Tensor]:
                found = objectives.losses(batch)
                peaks.append(seen.peak)
                seen.peak = seen.now
                return found

            watched = types.SimpleNamespace(losses=losses)
            backward: Any = Trainer._backward
            with Recorder() as seen, _as_on_a_gpu(seen):
                backward(types.SimpleNamespace(objectives=watched), batch, fixed_weights(job))
    return FakeStep(
        bucket=bucket,
        tokens=batch.input_ids_BT.numel(),
        losses_bytes=peaks[0],
        backward_bytes=seen.peak,
        weight_bytes=sum(weight.untyped_storage().nbytes() for weight in weights.values()),
        teacher_bytes=sum(weight.untyped_storage().nbytes() for weight in frozen.values()),
        products=seen.products,
        product_flops=seen.product_flops,
        attention_forward=seen.attention_forward,
        attention_backward=seen.attention_backward,
        moved_bytes=float(sum(seen.moved.values())),
        moved_by_operator=dict(seen.moved.most_common()),
    )


def row_lengths(job: TrainingJob) -> dict[str, int]:
    """Return the tokens per row of each bucket."""
    original = job.original_window
    return {"long": job.target_window, "short": min(1024, original), "original": original}


def _first_micro_batch(job: TrainingJob, bucket: str) -> MicroBatch:
    lengths = row_lengths(job)
    rows = {}
    for name in job.recipe.buckets():
        # One row is enough for the other buckets, which are not measured.
        number = job.rows[name] if name == bucket else 1
        shape = (number, lengths[name])
        rows[name] = Rows(
            input_ids_BT=torch.zeros(shape, dtype=torch.long),
            document_ids_BT=torch.zeros(shape, dtype=torch.int32),
            block_ids=list(range(number)),
            row_numbers=list(range(number)),
        )
    counts = term_counts(job, rows)
    totals = {term: float(count.sum()) for term, count in counts.items()}
    found = micro_batches(job, rows, counts, totals)
    return next(batch for batch in found if batch.bucket == bucket)


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Build models on the meta device instead of loading them: there are no files to read."""

    def load(folder: Path, *, original: Path | None = None, **settings: Any) -> PreTrainedModel:
        return models.build_model(folder, **settings)

    with mock.patch.object(models, "load_model", load):
        yield


@contextlib.contextmanager
def _as_on_a_gpu(seen: Recorder) -> Iterator[None]:
    with (
        mock.patch.object(compiling, "fastest", seen.as_one),
        mock.patch.object(masters, "product", _wide_product),
        mock.patch.object(cross_entropy, "product", _wide_product),
    ):
        yield


def _wide_product(left_MK: Tensor, right_KN: Tensor, dtype: torch.dtype) -> Tensor:
    if left_MK.dtype == dtype:
        return left_MK @ right_KN
    return torch.mm(left_MK, right_KN, out_dtype=dtype)


def _give_storage(model: PreTrainedModel, fake: FakeTensorMode) -> dict[int, Tensor]:
    """Move a model's weights from the meta device to a fake one; return each once."""
    made: dict[int, Tensor] = {}
    with fake:
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) not in made:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    made[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
                setattr(module, name, made[id(weight)])
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return made


def main() -> None:
    """Print the measurements of a recipe's micro-batches by bucket, next to the plan."""
    from longred.cost.flops import batches, needed_flops, recomputed_flops
    from longred.cost.memory import batch_parts
    from longred.cost.passes import elementwise_bytes
    from longred.cost.recipe import jobs, lengths_of
    from longred.cost.shape import named_config, shape_of
    from longred.runs.record import load_config

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="llama3-8b-32k")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--layers", type=int, help="decoder layers (default: the model's)")
    parser.add_argument("--bucket", choices=("long", "short", "original"))
    parser.add_argument("--json", action="store_true", help="print FakeStep as JSON lines")
    options = parser.parse_intermixed_args()
    recipe = load_config(options.recipe, options.overrides)
    config = named_config(recipe.model.path)
    if config is None:
        parser.error(f"{recipe.model.path}: is none of the named models")
    if options.layers:
        config = with_layers(config, options.layers)
    shape = shape_of(config)
    job = next(iter(jobs(recipe, shape)))
    names = ("bucket", "", "GiB", "products", "TFLOPs", "attention", "GB moved")
    print(_line(names))
    for batch in batches(job, lengths_of(recipe, job)):
        if options.bucket not in (None, batch.bucket):
            continue
        step = measure_micro_batch(config, job, batch.bucket)
        if options.json:
            print(json.dumps(dataclasses.asdict(step)))
            continue
        # Per micro-batch: the plan counts a whole step.
        part = batch.tokens / batch.step_tokens
        flops = (needed_flops(shape, job, batch) + recomputed_flops(shape, job, batch)) * part
        planned = FakeStep(
            bucket=batch.bucket,
            tokens=batch.tokens,
            losses_bytes=int(sum(batch_parts(shape, job, batch).values())),
            backward_bytes=0,
            weight_bytes=0,
            teacher_bytes=0,
            products=0,
            product_flops=flops.linear + flops.head,
            attention_forward=flops.attention_forward,
            attention_backward=flops.attention_backward,
            moved_bytes=elementwise_bytes(shape, job, batch) * part,
            moved_by_operator={},
        )
        print(_line((batch.bucket, "fake", *_figures(step))))
        print(_line(("", "planned", *_figures(planned))))


def _figures(step: FakeStep) -> tuple[str, ...]:
    attention = f"{step.attention_forward / 1e12:,.0f} + {step.attention_backward / 1e12:,.0f}"
    return (
        f"{step.peak_bytes / GIB:.2f}",
        str(step.products or ""),
        f"{step.product_flops / 1e12:,.0f}",
        attention,
        f"{step.moved_bytes / 1e9:,.0f}",
    )


def _line(cells: Sequence[str]) -> str:
    return "".join(
        f"{cell:<{width}}" if width < 10 else f"{cell:>{width}}"
        for cell, width in zip(cells, (9, 8, 10, 10, 10, 18, 10), strict=True)
    )


def with_layers(config: PreTrainedConfig, number: int) -> PreTrainedConfig:
    """Return the configuration of the same model with `number` decoder layers."""
    values = {**config.to_dict(), "num_hidden_layers": number}
    values.pop("layer_types", None)
    return type(config).from_dict(values)


if __name__ == "__main__":
    main()
