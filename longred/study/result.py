"""The typed result of a study, as `study.json` of its artifact holds it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from longred.errors import MismatchError
from longred.store.artifacts import read_json

RESULT_NAME = "study.json"

Verdict = Literal["holds", "does not hold", "not decided", "not testable"]
"""`not decided`: the interval includes no difference; `not testable`: a measure is missing."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What one evaluation measured; None if unknown. Scores and retention are in percent.

    Attributes:
        short_average: mean over capacities of the mean over the tasks of each.
        short_retention: `short_average` in percent of the original's, on the same samples.
        capacities: capacity → score.
        tasks: short task → score.
        ruler: length in tokens → mean over the compared RULER tasks.
        ruler_tasks: length in tokens → RULER task → score.
        ruler_average: mean of `ruler` over the lengths beyond the original window.
        average: mean over capacities and `ruler_average`.
        similarity: mean cosine of the last hidden state to the original's.
        similarity_per_layer: the same after each decoder layer.
        attention_kl_per_layer: mean KL of each layer's attention from the original's, nats.
        nats_per_token: loss on held-out text.
    """

    short_average: float | None
    short_retention: float | None
    capacities: dict[str, float | None]
    tasks: dict[str, float | None]
    ruler: dict[int, float | None]
    ruler_tasks: dict[int, dict[str, float | None]]
    ruler_average: float | None
    average: float | None
    similarity: float | None
    similarity_per_layer: list[float] | None
    attention_kl_per_layer: list[float] | None
    nats_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the training of a cell's student cost, over all windows of a progressive extension.

    Attributes:
        num_steps: optimizer steps.
        tokens: tokens read.
        flops: floating-point operations of student and teacher, as the plan counts them.
        seconds: duration on `hardware`.
        hardware: machine and number of threads or processes.
        digest: identity of the trained student's artifact.
    """

    num_steps: int
    tokens: int
    flops: float
    seconds: float
    hardware: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant with one seed: a pipeline run.

    Attributes:
        seed: the run's seed.
        run: id of the run.
        command: command that repeats it.
        settings: digest of the settings that can change a result.
        evaluation: digest of the artifact that holds the student's scores.
        models: `original`, `rescaled`, `student`, and each student that was saved during training
            by its step, such as `10`.
        training: cost of the student.
    """

    seed: int
    run: str
    command: str
    settings: str
    evaluation: str
    models: dict[str, ModelScores]
    training: Training | None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean over seeds, with its 95 % interval by Student's t; no interval for a single seed.

    Attributes:
        values: seed → value.
    """

    mean: float
    low: float | None
    high: float | None
    values: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the differences between two variants over the seeds that both have.

    Attributes:
        low, high: 95 % interval by Student's t over the pairs; None for a single pair.
        p: of the two-sided paired t test.
        p_adjusted: `p` after Holm's correction for all comparisons of its family.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    num_pairs: int


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One row of a panel.

    Attributes:
        name: as in the study's file.
        label: words for readers.
        method: trained method, such as `longred-c`.
        rope: RoPE rescaling, such as `ABF`.
        data: `long` if the training reads long text only, `mix` if it reads other buckets too,
            `short` if no long text.
        overrides: settings in which it differs from its panel.
        estimates: measure → mean over seeds, of the student; see `measures`.
        differences: measure → difference from the panel's baseline; empty for the baseline.
        cells: one per finished seed.
    """

    name: str
    label: str
    method: str
    rope: str
    data: str
    overrides: list[str]
    estimates: dict[str, Estimate]
    differences: dict[str, Difference]
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class PanelResult:
    """Variants under one evaluation.

    Attributes:
        original_window, target_window: in tokens.
        baseline: name of the variant that the others are compared with.
        variants: in the order of the file.
        references: `original` and `rescaled` → measure → mean over seeds, from the baseline's runs.
        lengths: evaluated RULER lengths.
        capacities: capacity → its compared short tasks.
        dropped: task left out of all averages → why.
        steps: steps at which students were saved during training, ascending; often empty.
    """

    name: str
    title: str
    original_window: int
    target_window: int
    baseline: str
    variants: list[VariantResult]
    references: dict[str, dict[str, Estimate]]
    lengths: list[int]
    capacities: dict[str, list[str]]
    dropped: dict[str, str]
    steps: list[int]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The outcome of one test of a claim.

    Attributes:
        text: what is compared, in words.
        difference: its numbers; None if a measure is missing.
        digits: digits after the point that the numbers deserve.
        verdict: of this test alone.
        command: command that repeats the runs behind it.
    """

    text: str
    difference: Difference | None
    digits: int
    verdict: Verdict
    command: str


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim and its verdict: it holds if all of its tests hold.

    Attributes:
        source: where the claim is made, and the published numbers.
        is_ours: whether it is a claim of this repository rather than of a paper.
    """

    text: str
    source: str
    is_ours: bool
    verdict: Verdict
    tests: list[Tested]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A whole study.

    Attributes:
        name: of the study's file, without suffix.
        study: the name or file as it was given; `longred study` takes it.
        digest: identity of the study's artifact; "" while runs are missing.
        num_cells, num_planned: finished runs, and all.
        machine: hardware of the trainings.
        versions: package → version.
        seconds: sum over all distinct stages of the runs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    study: str
    title: str
    description: str
    digest: str
    recipe: str
    seeds: list[int]
    num_cells: int
    num_planned: int
    date: str
    machine: str
    versions: dict[str, str]
    seconds: float
    panels: list[PanelResult]
    claims: list[ClaimResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


_RESULT = TypeAdapter(StudyResult)


def read_result(folder: Path) -> StudyResult:
    """Read the result of a study's artifact.

    Raises:
        MismatchError: the file is missing or damaged.
    """
    path = folder / RESULT_NAME
    try:
        return _RESULT.validate_python(read_json(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise MismatchError(f"{path}: is not the result of a study ({key})") from error
