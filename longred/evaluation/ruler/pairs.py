"""Key-value retrieval: one value of a long JSON object is asked for by its key (`kv_retrieval`).

It is not one of RULER's tasks. Form, wording, budget and score follow Liu et al. 2023, "Lost in the
Middle" (arXiv 2307.03172; nelson-liu/lost-in-the-middle, MIT License), whose published samples can
be asked as they are. The code is our own.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from longred.errors import ConfigError
from longred.evaluation.ruler.fitting import (
    Draft,
    SampleSpec,
    Start,
    Steps,
    fill,
    finished_sample,
    linear,
    per_unit,
)
from longred.evaluation.ruler.retrieval import draw_pairs
from longred.evaluation.ruler.rows import ROW_SUFFIXES, Source, read_rows, validated

TASK = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    'JSON data:\n{{{pairs}}}\n\nKey: "{key}"\n'
)
PREFIX = "Corresponding value:"

Pair = tuple[str, str]


@dataclass(frozen=True)
class Record:
    """A published sample.

    Attributes:
        pairs: keys and values, in order.
        asked: index of the pair that is asked for.
    """

    pairs: tuple[Pair, ...]
    asked: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of `kv_retrieval`.

    Attributes:
        keys, values: kinds of words, see `words.DRAWS`.
        budget: tokens reserved for the answer.
        num_keys: number of pairs; None for as many as fit.
        records: published samples, which are asked in order; otherwise samples are generated.
    """

    keys: str = "uuids"
    values: str = "uuids"
    budget: int = 100
    num_keys: int | None = None
    records: tuple[Record, ...] = ()


def prepare(spec: SampleSpec) -> Start:
    """Return the function that starts samples of `kv_retrieval`."""
    settings: Settings = spec.settings
    probe = [*islice(_drawn(settings, random.Random(0)), 32)]  # noqa: S311
    pair_tokens = per_unit(lambda num_pairs: _json(probe[:num_pairs]), spec.count)

    def start(rng: random.Random, index: int) -> Steps:
        if settings.records:
            record = settings.records[index % len(settings.records)]
            return _fixed(spec, _draft(record.pairs, record.asked), len(record.pairs))
        depth = rng.random()
        drawn = _drawn(settings, random.Random(rng.getrandbits(64)))  # noqa: S311
        pairs: list[Pair] = []

        def draft(num_pairs: int) -> Draft:
            pairs.extend(islice(drawn, max(0, num_pairs - len(pairs))))
            return _draft(pairs[:num_pairs], min(int(depth * num_pairs), num_pairs - 1))

        if settings.num_keys is not None:
            return _fixed(spec, draft(settings.num_keys), settings.num_keys)
        return fill(
            spec, draft, PREFIX, smallest=1, largest=spec.length, tokens=linear(pair_tokens)
        )

    return start


def _drawn(settings: Settings, rng: random.Random) -> Iterator[Pair]:
    return draw_pairs(settings.keys, settings.values, rng, set())


def _draft(pairs: Sequence[Pair], asked: int) -> Draft:
    key, value = pairs[asked]
    task = TASK.format(pairs=_json(pairs), key=key)
    return Draft(f"{task}{PREFIX}", [value], [round(asked / max(1, len(pairs) - 1), 4)])


def _json(pairs: Sequence[Pair]) -> str:
    return ",\n ".join(f'"{key}": "{value}"' for key, value in pairs)


def _fixed(spec: SampleSpec, draft: Draft, num_pairs: int) -> Steps:
    """Return a sample whose size is given.

    Raises:
        ConfigError: it does not fit.
    """
    num_tokens = yield draft.prompt
    if num_tokens > spec.max_prompt_tokens:
        raise ConfigError(
            f"evaluation.ruler.lengths: kv_retrieval with {num_pairs} keys takes "
            f"{num_tokens + spec.settings.budget} tokens of this tokenizer, more than "
            f"{spec.length}; use longer lengths or fewer keys (evaluation.ruler.kv_keys)"
        )
    return finished_sample(draft, PREFIX, num_tokens, num_pairs)


_Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    ordered_kv_records: list[tuple[_Text, _Text]]
    key: _Text
    value: _Text

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.ordered_kv_records) < 2:
            raise ValueError("must have two or more pairs in `ordered_kv_records`")
        if len(dict(self.ordered_kv_records)) < len(self.ordered_kv_records):
            raise ValueError("must have different keys in `ordered_kv_records`")
        if (self.key, self.value) not in self.ordered_kv_records:
            raise ValueError("must have its `key` with its `value` in `ordered_kv_records`")
        return self

    def record(self) -> Record:
        pairs = tuple(self.ordered_kv_records)
        return Record(pairs=pairs, asked=pairs.index((self.key, self.value)))


def read_records(path: str) -> tuple[Record, ...]:
    """Read published samples of `kv_retrieval`, in the file's order.

    Raises:
        ConfigError: the file is missing or malformed; names the setting, the file and where in it.
    """
    source = Source(key="evaluation.ruler.kv_records", path=path)
    if not path.endswith(ROW_SUFFIXES):
        raise ConfigError(
            f"{source.key}: {path}: does not end in {', '.join(ROW_SUFFIXES)}; give a file such as "
            "kv-retrieval-140_keys.jsonl.gz"
        )
    schema = Annotated[list[_Row], Field(min_length=1)]
    rows: list[_Row] = validated(schema, read_rows(source), f"{source.key}: {source.local}")
    return tuple(row.record() for row in rows)
