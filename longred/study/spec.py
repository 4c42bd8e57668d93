"""The file of a study: panels of variants, seeds, and the claims that they test."""

import difflib
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from longred.config import RunConfig
from longred.config.messages import problems_in
from longred.config.section import Section
from longred.errors import ConfigError, shown, where_paths_start
from longred.method.values import Bounds, CountOrZero
from longred.recipes import Recipe, read_text
from longred.recipes.strict import read_yaml
from longred.study.measures import STUDENT, measure_of

PACKAGED = Path(__file__).parent / "packaged"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Setting = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.]*=")]
"""An override of the recipe, `section.key=value`."""


class Variant(Section):
    """One row of a panel: settings, and its words."""

    set: list[Setting] = Field(default=[], description="Settings in which it differs.")
    label: str = Field(default="", description="Words for readers; its name if empty.")
    seeds: list[CountOrZero] | None = Field(
        default=None, description="Seeds of this variant; null for those of the study."
    )


class Panel(Section):
    """Variants under one evaluation, one of which is the baseline of all comparisons."""

    title: str = Field(description="Heading of its table.")
    baseline: Name = Field(description="Name of the variant that the others are compared with.")
    set: list[Setting] = Field(default=[], description="Settings of all of its variants.")
    variants: dict[Name, Variant] = Field(min_length=1, description="Its rows, in order.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline: {self.baseline} is not one of {', '.join(self.variants)}")
        return self


class Test(Section):
    """One comparison of a claim: exactly one of `above`, `rises_with` and `peaks` is given.

    A model is `PANEL/VARIANT`, its student, or `PANEL/VARIANT:MODEL`, where MODEL is `rescaled`,
    `original` or a step at which a student was saved.
    """

    measure: str = Field(description="What is compared, such as short_average or ruler.")
    of: str | None = Field(default=None, description="The model that should have more.")
    above: str | None = Field(default=None, description="The model that should have less.")
    margin: float = Field(
        default=0.0,
        description="With above: by how much `of` may fall short; its difference must exceed "
        "-margin. A negative margin asks for a lead.",
    )
    rises_with: str | None = Field(
        default=None,
        description="A measure: over the variants of `panel` and their saved students, `measure` "
        "must correlate with it.",
    )
    panel: Name | None = Field(default=None, description="With rises_with: the panel.")
    peaks: str | None = Field(
        default=None,
        description="A variant: `measure` must be higher at some saved step than before training "
        "and than at the end.",
    )

    @field_validator("measure", "rises_with")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            measure_of(name)
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        forms = [self.above, self.rises_with, self.peaks]
        if sum(form is not None for form in forms) != 1:
            raise ValueError("give exactly one of above, rises_with and peaks")
        if (self.above is None) != (self.of is None):
            raise ValueError("of and above belong together")
        if (self.rises_with is None) != (self.panel is None):
            raise ValueError("rises_with and panel belong together")
        return self


class Claim(Section):
    """A claim, which holds if all of its tests hold."""

    text: str = Field(description="The claim, in one sentence.")
    source: str = Field(default="", description="Where it is made, and the published numbers.")
    ours: bool = Field(default=False, description="Whether it is made here, not in a paper.")
    tests: list[Test] = Field(min_length=1, description="Its comparisons.")


class Study(Section):
    """A grid of variants and seeds."""

    title: str = Field(description="Title of the page.")
    description: str = Field(default="", description="What it asks, in a few sentences.")
    recipe: str = Field(description="Recipe that all runs start from: a name or a file.")
    seeds: list[CountOrZero] = Field(min_length=1, description="Seeds of every variant.")
    set: list[Setting] = Field(default=[], description="Settings of all runs.")
    slots: Annotated[int, Bounds(ge=1)] = Field(
        default=1,
        description="Runs side by side; each gets its part of the GPUs or cores. The option "
        "`--slots` replaces it.",
    )
    panels: dict[Name, Panel] = Field(min_length=1, description="Its tables, in order.")
    claims: list[Claim] = Field(default=[], description="What it tests.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, claim in enumerate(self.claims):
            for position, test in enumerate(claim.tests):
                for name in filter(None, (test.of, test.above, test.peaks)):
                    self._find(name, f"claims.{number}.tests.{position}")
                if test.panel is not None and test.panel not in self.panels:
                    raise ValueError(
                        f"claims.{number}.tests.{position}.panel: {test.panel} is not one of "
                        f"{', '.join(self.panels)}"
                    )
        return self

    def _find(self, name: str, key: str) -> None:
        panel, variant, _ = split_model(name)
        if panel not in self.panels or variant not in self.panels[panel].variants:
            known = [f"{p}/{v}" for p, entry in self.panels.items() for v in entry.variants]
            raise ValueError(f"{key}: {shown(name)} names none of {', '.join(known)}")


def split_model(name: str) -> tuple[str, str, str]:
    """Split `PANEL/VARIANT` or `PANEL/VARIANT:MODEL` into panel, variant and model."""
    place, _, model = name.partition(":")
    panel, _, variant = place.partition("/")
    return panel, variant, model or STUDENT


def packaged_studies() -> list[str]:
    """Return the names of the packaged studies."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def load_study(name_or_path: str) -> tuple[str, Study]:
    """Read a packaged study or a YAML file.

    Returns:
        The study's name, and its content.

    Raises:
        ConfigError: it does not exist, cannot be read, or a key or value is wrong; the message
            names the dotted key.
    """
    path = _file_of(name_or_path)
    source = str(path)
    values, lines = read_yaml(read_text(path), source)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: a study is a mapping, see the packaged studies")
    if "panels" not in values and values.keys() & RunConfig.model_fields.keys():
        raise ConfigError(
            f"{source}: is a recipe; `longred run {shown(name_or_path, 200)}` runs it, and a study "
            "names it as its recipe"
        )
    try:
        return path.stem, Study.model_validate(values)
    except ValidationError as error:
        recipe = Recipe(source, values, lines)
        raise ConfigError(problems_in(error, root=Study, place=recipe.place)) from None


def _file_of(name: str) -> Path:
    known = packaged_studies()
    if name in known:
        return PACKAGED / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{shown(name, 200)}: no such study or file{where_paths_start(name)}; packaged studies: "
        f"{', '.join(known)}{hint}"
    )
