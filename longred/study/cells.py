"""The runs of a study: one variant with one seed each, in the order in which they start."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from longred.config import RunConfig
from longred.errors import ConfigError
from longred.runs.record import load_config, merge_overrides
from longred.runs.session import settings_digest
from longred.study.spec import Study


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One run of a study.

    Attributes:
        panel, variant: names in the study's file.
        seed: the run's seed.
        recipe: recipe that it starts from.
        overrides: changes to the recipe.
        config: its settings.
        digest: of the settings that can change a result; equal cells are one run.
    """

    panel: str
    variant: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: RunConfig
    digest: str

    @property
    def name(self) -> str:
        """Name for readers."""
        return f"{self.panel}/{self.variant} seed {self.seed}"

    @property
    def command(self) -> str:
        """Command that repeats the run."""
        return shlex.join(["longred", "run", self.recipe, *self.overrides])


def plan_cells(study: Study, only: Sequence[str] = ()) -> list[PlannedCell]:
    """Return all runs of a study, seed by seed.

    A study that ends early has therefore complete comparisons of the first seeds.

    Args:
        study: the study.
        only: panels, or variants as `PANEL/VARIANT`; empty for all.

    Raises:
        ConfigError: the settings of a variant are wrong, or `only` names nothing.
    """
    rows = _chosen(study, only)
    wanted = dict.fromkeys(seed for seeds in rows.values() for seed in seeds)
    order = [*dict.fromkeys([*study.seeds, *wanted])]
    cells: list[PlannedCell] = []
    for seed in order:
        for (panel, variant), seeds in rows.items():
            if seed in seeds:
                cells.append(_plan(study, panel, variant, seed))
    return cells


def _chosen(study: Study, only: Sequence[str]) -> dict[tuple[str, str], list[int]]:
    rows = {
        (panel, variant): list(entry.seeds or study.seeds)
        for panel, group in study.panels.items()
        for variant, entry in group.variants.items()
    }
    if not only:
        return rows
    chosen = {key: seeds for key, seeds in rows.items() if key[0] in only or "/".join(key) in only}
    found = {name for panel, variant in chosen for name in (panel, f"{panel}/{variant}")}
    for name in only:
        if name not in found:
            known = ", ".join([*study.panels, *("/".join(key) for key in rows)])
            raise ConfigError(f"--only: {name} is neither a panel nor a variant; there are {known}")
    return chosen


def _plan(study: Study, panel: str, variant: str, seed: int) -> PlannedCell:
    group = study.panels[panel]
    # A variant is one method: what the recipe trains beside it would be trained for every variant.
    overrides: list[str] = ["training.baselines=[]"]
    for more in (study.set, group.set, group.variants[variant].set, [f"seed={seed}"]):
        overrides = merge_overrides(overrides, more)
    try:
        config = load_config(study.recipe, overrides)
    except ConfigError as error:
        raise ConfigError(f"panels.{panel}.variants.{variant}: {error}") from None
    return PlannedCell(
        panel,
        variant,
        seed,
        study.recipe,
        tuple(overrides),
        config,
        settings_digest(config),
    )


def distinct(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Return the cells that differ in their settings, each once."""
    first: dict[str, PlannedCell] = {}
    for cell in cells:
        first.setdefault(cell.digest, cell)
    return list(first.values())
