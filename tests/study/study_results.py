"""Cells and results of a study, made of numbers, for the tests of what shows or judges them."""

from collections.abc import Mapping, Sequence
from typing import Any

from longred.study.measures import STUDENT
from longred.study.result import (
    Cell,
    ClaimResult,
    Difference,
    ModelScores,
    PanelResult,
    StudyResult,
    Tested,
    Training,
    VariantResult,
)
from longred.study.statistics import adjust, estimate, summarise

MEASURES = (
    *("short_average", "short_retention", "ruler", "average", "similarity", "attention_kl"),
    *("nats_per_token", "tokens", "flops", "seconds", "ruler.256", "ruler.512"),
    *("capacity.coding", "task.brackets", "tokens_to_retention.95", "tokens_to_ruler.50"),
)


def scores(
    short: float, ruler: float | None, similarity: float, retention: float | None = None
) -> ModelScores:
    """Return scores that agree with each other."""
    return ModelScores(
        short_average=short,
        short_retention=short / 0.8 if retention is None else retention,
        capacities={"coding": short},
        tasks={"brackets": short},
        ruler={256: 90.0, 512: ruler},
        ruler_tasks={256: {"niah_single_1": 90.0}, 512: {"niah_single_1": ruler}},
        ruler_average=ruler,
        average=None if ruler is None else (short + ruler) / 2,
        similarity=similarity,
        similarity_per_layer=[0.999, similarity],
        attention_kl_per_layer=[0.1, 1 - similarity],
        nats_per_token=2.5,
    )


def cell(
    seed: int,
    student: ModelScores,
    *,
    saved: Mapping[int, ModelScores] | None = None,
    flops: float = 5.4e12,
    command: str = "longred run demo",
) -> Cell:
    """Return a finished run of 60 steps."""
    models = {"original": scores(80.0, 0.0, 1.0), "rescaled": scores(60.0, 2.0, 0.93)}
    models |= {str(step): each for step, each in (saved or {}).items()}
    return Cell(
        seed=seed,
        run=f"20261201-0000{seed:02d}-demo-aaaa",
        command=f"{command} seed={seed}",
        settings=f"{seed:016x}",
        evaluation=f"{seed + 99:016x}",
        models={**models, STUDENT: student},
        training=Training(
            num_steps=60,
            tokens=491_520,
            flops=flops,
            seconds=80.0 + seed,
            hardware="x86_64 (cpu), 1 threads",
            digest=f"{seed + 7:016x}",
        ),
    )


def row(
    shorts: Sequence[float], rulers: Sequence[float | None], similarity: float = 0.98, **more: Any
) -> list[Cell]:
    """Return one cell a seed."""
    pairs = zip(shorts, rulers, strict=True)
    return [cell(seed, scores(s, r, similarity), **more) for seed, (s, r) in enumerate(pairs)]


def panel(rows: Mapping[str, list[Cell]], baseline: str, steps: Sequence[int] = ()) -> PanelResult:
    """Return a panel of variants, summarised as a study does."""
    found = {name: summarise(rows[baseline], cells, MEASURES) for name, cells in rows.items()}
    changes = adjust({name: each for name, (_, each) in found.items() if name != baseline})
    original = {name: estimate({0: 80.0, 1: 80.0}) for name in ("short_average", "capacity.coding")}
    return PanelResult(
        name="4x",
        title="256 to 512 tokens",
        original_window=256,
        target_window=512,
        baseline=baseline,
        variants=[
            VariantResult(
                name=name,
                label=f"words for {name}",
                method=name,
                rope="ABF",
                data="mix",
                overrides=[f"training.method={name}"],
                estimates=found[name][0],
                differences=changes.get(name, {}),
                cells=cells,
            )
            for name, cells in rows.items()
        ],
        references={"original": original},
        lengths=[256, 512],
        capacities={"coding": ["brackets"]},
        dropped={"vt": "the original scores 1.0 where guessing scores 0.0"},
        steps=list(steps),
    )


def claim(verdict: Any, text: str = "One is better.", *, is_ours: bool = False) -> ClaimResult:
    """Return a claim with one test."""
    is_known = verdict != "not testable"
    found = Difference(mean=1.5, low=0.5, high=2.5, p=0.01, p_adjusted=0.02, num_pairs=5)
    test = Tested(
        text="short average of a above b",
        difference=found if is_known else None,
        digits=1,
        verdict=verdict,
        command="longred study demo --only 4x/a,4x/b",
    )
    return ClaimResult(text=text, source="table 1", is_ours=is_ours, verdict=verdict, tests=[test])


def result(panels: Sequence[PanelResult], claims: Sequence[ClaimResult] = ()) -> StudyResult:
    """Return a whole study."""
    count = sum(len(variant.cells) for each in panels for variant in each.variants)
    return StudyResult(
        name="demo",
        study="demo",
        title="What restores <script>alert(1)</script> skill",
        description="Five seeds & two methods.",
        digest="0123456789abcdef",
        recipe="demo",
        seeds=[0, 1, 2, 3, 4],
        num_cells=count,
        num_planned=count,
        date="2026-12-01 00:00 UTC",
        machine="x86_64 (cpu)",
        versions={"longred": "0.1.0"},
        seconds=7200.0,
        panels=list(panels),
        claims=list(claims),
    )
