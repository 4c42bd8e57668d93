"""Tables of a study as text cells, for the page, the terminal and Markdown."""

from collections.abc import Callable, Mapping, Sequence

from longred.progress import duration
from longred.report.text_table import NOT_AVAILABLE, Table
from longred.study.measures import measure_of
from longred.study.result import (
    ClaimResult,
    Difference,
    Estimate,
    PanelResult,
    StudyResult,
    VariantResult,
)
from longred.study.statistics import CORRECTED

NOT_REACHED = "not reached"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed digits, or n/a."""
    return NOT_AVAILABLE if value is None else f"{value:,.{digits}f}"


def plus_minus(estimate: Estimate | None, digits: int = 1) -> str:
    """Return a mean with the half-width of its interval."""
    if estimate is None:
        return NOT_AVAILABLE
    text = number(estimate.mean, digits)
    if estimate.low is None:
        return text
    return f"{text} ± {number(estimate.mean - estimate.low, digits)}"


def change(difference: Difference | None, digits: int = 1) -> str:
    """Return a difference with its sign and interval."""
    if difference is None:
        return NOT_AVAILABLE
    text = f"{difference.mean:+.{digits}f}"
    if difference.low is None:
        return text
    return f"{text} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def p_text(difference: Difference | None) -> str:
    """Return the corrected p of a difference."""
    p = difference.p_adjusted if difference else None
    if p is None:
        return NOT_AVAILABLE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def operations(value: float) -> str:
    """Return a number of floating-point operations with a unit, such as 5.4 TFLOP."""
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if value < 1000:
            return f"{value:.3g} {unit}FLOP"
        value /= 1000
    return f"{value:.3g} ZFLOP"


def paper_table(panel: PanelResult) -> Table:
    """Return the published table in its form: a row per method, capacities, RULER, average."""
    capacities = list(panel.capacities)
    header = ["window", "RoPE", "data", "method", *capacities, "short avg", "RULER", "avg"]
    names = [*(f"capacity.{name}" for name in capacities), "short_average", "ruler", "average"]
    original = panel.references.get("original", {})
    rows = [
        [f"{panel.original_window:,}", "-", "-", "original"]
        + [plus_minus(original.get(name)) for name in names]
    ]
    for variant in panel.variants:
        place = [f"{panel.target_window:,}", variant.rope, variant.data, variant.name]
        rows.append(place + [plus_minus(variant.estimates.get(name)) for name in names])
    return Table(header, rows)


def main_table(panel: PanelResult) -> Table:
    """Return scores, similarity and cost of every variant, below those of the references."""
    scores = ["short_average", "short_retention", *(f"ruler.{n}" for n in panel.lengths)]
    scores += ["similarity", "nats_per_token"]
    header = ["variant", *(measure_of(name).text for name in scores)]
    header += ["tokens", "FLOPs", "time", "seeds"]
    rows = []
    for name, estimates in panel.references.items():
        cells = [_scored(estimates, each) for each in scores]
        rows.append([name, *cells, "0", "0", "-", "-"])
    rows += [
        [
            variant.name,
            *(_scored(variant.estimates, name) for name in scores),
            _cost(variant, "tokens", lambda value: f"{value:,.0f}"),
            _cost(variant, "flops", operations),
            _cost(variant, "seconds", duration),
            str(len(variant.cells)),
        ]
        for variant in panel.variants
    ]
    return Table(header, rows)


def _scored(estimates: Mapping[str, Estimate], name: str) -> str:
    return plus_minus(estimates.get(name), measure_of(name).digits)


def _cost(variant: VariantResult, name: str, text: Callable[[float], str]) -> str:
    estimate = variant.estimates.get(name)
    return NOT_AVAILABLE if estimate is None else text(estimate.mean)


def difference_table(panel: PanelResult) -> Table:
    """Return each variant minus the baseline on the corrected measures."""
    header = ["variant", measure_of("short_average").text]
    for name in CORRECTED:
        header += [measure_of(name).text, "p"]
    rows = []
    for variant in panel.variants:
        if variant.name == panel.baseline:
            continue
        row = [variant.name, change(variant.differences.get("short_average"))]
        for name in CORRECTED:
            found = variant.differences.get(name)
            row += [change(found, measure_of(name).digits), p_text(found)]
        rows.append(row)
    return Table(header, rows)


def budget_table(panel: PanelResult) -> Table | None:
    """Return the tokens that each variant needs; None if no student was saved in training."""
    if not panel.steps:
        return None
    names = [
        name
        for name in ("tokens_to_retention.95", "tokens_to_ruler.50")
        if any(name in variant.estimates for variant in panel.variants)
    ]
    if not names:
        return None
    with_steps = [v for v in panel.variants if any(_saved(cell.models) for cell in v.cells)]
    rows = [
        [variant.name]
        + [
            plus_minus(variant.estimates[name], 0) if name in variant.estimates else NOT_REACHED
            for name in names
        ]
        for variant in with_steps
    ]
    return Table(["variant", *(measure_of(name).text for name in names)], rows)


def _saved(models: Mapping[str, object]) -> list[str]:
    return [name for name in models if name.isdigit()]


def claims_list(claims: Sequence[ClaimResult]) -> str:
    """Return every claim with its verdict and the numbers of its tests, as a list in Markdown."""
    lines = []
    for claim in claims:
        lines.append(f"- **{claim.verdict}**: {claim.text}")
        lines += [
            f"  - {test.text}: {change(test.difference, test.digits)}, p {p_text(test.difference)}"
            for test in claim.tests
        ]
    return "\n".join(lines)


def cell_table(panel: PanelResult) -> Table:
    """Return every run with what identifies it."""
    rows = [
        [
            variant.name,
            str(cell.seed),
            cell.run or NOT_AVAILABLE,
            cell.settings,
            cell.training.digest if cell.training else NOT_AVAILABLE,
            cell.command,
        ]
        for variant in panel.variants
        for cell in variant.cells
    ]
    return Table(["variant", "seed", "run", "settings", "checkpoint", "command"], rows)


NOTE = (
    "Means over seeds ± half of the 95 % interval. RULER without a length: mean over the lengths "
    "beyond the original window. Differences are paired by seed; p after Holm's correction."
)


def origin(result: StudyResult) -> str:
    """Return one line: which command made the numbers, when, of which runs and on what."""
    runs = f"{result.num_cells}"
    if result.num_cells < result.num_planned:
        runs += f" of {result.num_planned}"
    made = [f"`longred study {result.study}`", result.date, f"{runs} runs"]
    made += [f"seeds {', '.join(map(str, result.seeds))}", result.machine]
    made += [f"artifact study-{result.digest}"] if result.digest else []
    return f"{result.title} ({'; '.join(made)})."


def markdown(result: StudyResult) -> str:
    """Return the tables of a study as Markdown."""
    parts: list[str | Table] = [origin(result), NOTE]
    for panel in result.panels:
        parts += [f"{panel.title}:", main_table(panel)]
        parts += [f"Differences from {panel.baseline}:", difference_table(panel)]
        if budget := budget_table(panel):
            parts.append(budget)
    if result.claims:
        parts.append(claims_list(result.claims))
    texts = [part if isinstance(part, str) else part.markdown().rstrip() for part in parts]
    return "\n\n".join(texts) + "\n"
