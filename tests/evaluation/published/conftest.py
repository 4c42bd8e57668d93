"""Readings of published benchmarks on small files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from longred.evaluation.published import BENCHMARKS
from longred.evaluation.published.reading import Reading


@pytest.fixture(scope="session")
def read(tokenizer: Any) -> Callable[..., list[dict[str, Any]]]:
    """Return the samples of a benchmark with its own settings and given ones."""

    def samples(
        benchmark: str,
        files: Mapping[str, Path],
        *,
        limit: int | None = None,
        shots: int = 2,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        entry = BENCHMARKS[benchmark]
        reading = Reading(
            name="task",
            files=files,
            tokenizer=tokenizer,
            seed=seed,
            limit=limit,
            shots=shots,
            settings={**{k: s.default for k, s in entry.settings.items()}, **settings},
        )
        return list(entry.read(reading))

    return samples
