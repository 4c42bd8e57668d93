"""Cost of an evaluation: reading prompts, writing answers, and rows of held-out text.

Tasks of lm-eval are left out: their sizes are known only when their data are here.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from longred.cost.flops import Flops, forward_flops
from longred.cost.plan import flops_seconds
from longred.cost.shape import ModelShape
from longred.cost.speeds import Speeds

if TYPE_CHECKING:
    from longred.config import EvaluationConfig

CACHE_SHARE = 0.8
"""Share of the memory beside the weights that holds keys and values."""
MAX_ROWS = {"cpu": 64, "cuda": 256}
"""Most prompts that are answered at a time."""
LAYER_SECONDS = 5e-4
"""Seconds that Python and kernel launches take for each layer of a step, at least."""
ITEM_BYTES = 2.0


class _Prompts(NamedTuple):
    """What a RULER task costs.

    Attributes:
        budget: tokens of an answer; RULER generates all of them.
        num_needles: values hidden at random depths of the text that all prompts share: what
            precedes the first one runs once. None if prompts have nothing in common.
    """

    budget: int
    num_needles: int | None = None


PROMPTS = {
    "niah_single_1": _Prompts(128, 1),
    "niah_single_2": _Prompts(128, 1),
    "niah_single_3": _Prompts(128, 1),
    "niah_multikey_1": _Prompts(128, 4),
    "niah_multikey_2": _Prompts(128),
    "niah_multikey_3": _Prompts(128),
    "niah_multivalue": _Prompts(128, 4),
    "niah_multiquery": _Prompts(128, 4),
    "vt": _Prompts(30),
    "cwe": _Prompts(120),
    "fwe": _Prompts(50),
    "qa_1": _Prompts(32),
    "qa_2": _Prompts(32),
}
OTHER = _Prompts(128)
"""Any other task."""


class _Part(NamedTuple):
    """A part of an evaluation of one model: tokens read and written, operations, seconds."""

    tokens: float
    flops: float
    seconds: float


def evaluation_cost(
    config: "EvaluationConfig", shape: ModelShape, speeds: Speeds, num_students: int
) -> dict[str, float]:
    """Return the cost of evaluating all models of a run on one device.

    Returns:
        `tokens`, `flops`, `seconds`, and `num_models`.
    """
    num_models = num_students + len(config.references)
    parts = [*_ruler(config, shape, speeds), *_texts(config, shape, speeds)]
    sums = (num_models * sum(column) for column in zip(*parts, strict=True))
    return {
        **dict(zip(("tokens", "flops", "seconds"), sums, strict=True)),
        "num_models": float(num_models),
    }


def _ruler(config: "EvaluationConfig", shape: ModelShape, speeds: Speeds) -> Iterator[_Part]:
    """Yield the cost of each RULER task at each length."""
    count = config.ruler.num_samples
    for length in config.ruler.lengths:
        forward = forward_flops(shape, length, head=False)
        for task in config.ruler.tasks:
            prompts = PROMPTS.get(task, OTHER)
            linear, attention = new_shares(prompts.num_needles)
            read = Flops(
                linear=forward.linear * linear,
                attention_forward=forward.attention_forward * attention,
            ) * float(length * count)
            written = forward_flops(shape, length, head=True) * float(prompts.budget * count)
            seconds = flops_seconds(read, length, speeds)
            seconds += answer_seconds(shape, speeds, length, prompts.budget, count)
            tokens = count * (length * linear + prompts.budget)
            yield _Part(tokens, read.total + written.total, seconds)


def new_shares(num_needles: int | None) -> tuple[float, float]:
    """Return the shares of a prompt's linear and attention operations that run.

    With the first of k needles at a random depth u, an earlier prompt shares the first u of it: the
    rest has 1 - u of the tokens, with 1 - u² of the operations of attention. The mean of u is
    1 / (k + 1), that of u² is 2 / ((k + 1) (k + 2)).
    """
    if num_needles is None:
        return 1.0, 1.0
    k = num_needles
    return 1 - 1 / (k + 1), 1 - 2 / ((k + 1) * (k + 2))


def answer_seconds(
    shape: ModelShape, speeds: Speeds, length: int, budget: int, count: int
) -> float:
    """Return the seconds to write `count` answers of `budget` tokens after prompts of a length.

    Every step reads all weights, and the keys and values of all prompts at a time.
    """
    row_bytes = 2 * ITEM_BYTES * shape.num_layers * shape.key_size * (length + budget)
    weight_bytes = ITEM_BYTES * shape.num_parameters
    free = CACHE_SHARE * max(0.0, speeds.memory_bytes - weight_bytes)
    rows = max(1, min(count, MAX_ROWS[speeds.kind], int(free / row_bytes)))
    step = forward_flops(shape, length, head=True) * float(rows)
    seconds = max(
        (weight_bytes + rows * row_bytes) / speeds.bandwidth,
        (step.linear + step.head) / speeds.matmul_flops,
        LAYER_SECONDS * shape.num_layers,
    )
    return seconds * budget * count / rows


def _texts(config: "EvaluationConfig", shape: ModelShape, speeds: Speeds) -> Iterator[_Part]:
    """Yield the cost of the loss, the similarity to the original, and perplexity."""
    rows = [
        (config.text_window, config.similarity_tokens, True),
        # The original and the model.
        (config.original_window, 2 * config.similarity_tokens, False),
        *((length, config.perplexity.num_tokens, True) for length in config.perplexity.lengths),
    ]
    for length, num_tokens, head in rows:
        flops = forward_flops(shape, length, head=head) * float(num_tokens)
        yield _Part(num_tokens, flops.total, flops_seconds(flops, length, speeds))
