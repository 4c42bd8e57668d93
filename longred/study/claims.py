"""The verdicts on a study's claims, corrected for their number.

A claim holds if all of its tests do, so that its p is the largest of theirs and needs no correction
for their number (an intersection-union test: R. L. Berger, Technometrics 24, 1982). Holm's
correction is over the claims. A test that contradicts its claim could be any of them, so its p is
multiplied by the number of all tests.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from longred.study.measures import (
    RESCALED,
    STUDENT,
    common_steps,
    measure_of,
    saved_steps,
    value_of,
)
from longred.study.result import Cell, ClaimResult, Difference, Tested, Verdict
from longred.study.spec import Study, Test, split_model
from longred.study.statistics import difference, of_values, spearman

SIGNIFICANT = 0.05

Cells = Mapping[tuple[str, str], Sequence[Cell]]
"""(panel, variant) → its finished runs."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A test before the correction for the number of tests."""

    text: str
    difference: Difference | None
    margin: float
    digits: int
    variants: list[str]


def judge(study: Study, cells: Cells, given: str) -> list[ClaimResult]:
    """Return the verdict on every claim.

    A claim holds if all of its tests hold, and does not if one does not.

    Args:
        study: the study.
        cells: its finished runs.
        given: the name or path of the study, for commands.
    """
    outcomes = [[_run(test, cells) for test in claim.tests] for claim in study.claims]
    found = []
    for claim, tests in zip(study.claims, _corrected(outcomes), strict=True):
        tested = [_tested(each, given) for each in tests]
        verdict = _together([each.verdict for each in tested])
        found.append(
            ClaimResult(
                text=claim.text,
                source=claim.source,
                is_ours=claim.ours,
                verdict=verdict,
                tests=tested,
            )
        )
    return found


def _corrected(claims: Sequence[Sequence[_Outcome]]) -> list[list[_Outcome]]:
    """Return the tests of each claim with `p_adjusted`."""
    total = sum(len(tests) for tests in claims)
    largest = {n: p for n, tests in enumerate(claims) if (p := _claim_p(tests)) is not None}
    factors: dict[int, tuple[int, float]] = {}
    floor = 0.0
    for rank, number in enumerate(sorted(largest, key=lambda n: largest[n])):
        factor = len(largest) - rank
        factors[number] = (factor, floor)
        floor = max(floor, min(1.0, factor * largest[number]))
    return [
        [_with_p(each, total, *factors.get(number, (total, 0.0))) for each in tests]
        for number, tests in enumerate(claims)
    ]


def _claim_p(tests: Sequence[_Outcome]) -> float | None:
    """Return the p of a claim: 1 if a test contradicts it, None if a test has no p."""
    found = [each.difference.p if each.difference else None for each in tests]
    known = [p for p in found if p is not None]
    if len(known) < len(found):
        return None
    return max(known) if all(map(_agrees, tests)) else 1.0


def _with_p(outcome: _Outcome, total: int, factor: int, floor: float) -> _Outcome:
    found = outcome.difference
    if found is None or found.p is None:
        return outcome
    adjusted = max(floor, factor * found.p) if _agrees(outcome) else total * found.p
    return replace(outcome, difference=replace(found, p_adjusted=min(1.0, adjusted)))


def _agrees(outcome: _Outcome) -> bool:
    """Return whether a test has the claimed sign."""
    return outcome.difference is not None and outcome.difference.mean + outcome.margin > 0


def _tested(outcome: _Outcome, given: str) -> Tested:
    command = ["longred", "study", given, "--only", ",".join(dict.fromkeys(outcome.variants))]
    return Tested(
        text=outcome.text,
        difference=outcome.difference,
        digits=outcome.digits,
        verdict=_verdict(outcome.difference, outcome.margin),
        command=shlex.join(command),
    )


def _verdict(found: Difference | None, margin: float) -> Verdict:
    if found is None or found.p_adjusted is None:
        return "not testable"
    if found.p_adjusted >= SIGNIFICANT:
        return "not decided"
    return "holds" if found.mean + margin > 0 else "does not hold"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("does not hold", "not testable", "not decided")
    return next((verdict for verdict in order if verdict in verdicts), "holds")


def _run(test: Test, cells: Cells) -> _Outcome:
    if test.of is not None and test.above is not None:
        return _compare(test, test.of, test.above, cells)
    if test.rises_with is not None and test.panel is not None:
        return _correlate(test, test.rises_with, test.panel, cells)
    return _find_peak(test, str(test.peaks), cells)


def _compare(test: Test, of: str, above: str, cells: Cells) -> _Outcome:
    measure = measure_of(test.measure)
    text = f"{measure.text} of {_words(of)} above {_words(above)}"
    if test.margin > 0:
        text = f"{measure.text} of {_words(of)} no more than {test.margin:g} below {_words(above)}"
    elif test.margin < 0:
        text += f" by more than {-test.margin:g}"
    found = difference(
        _values(of, test.measure, cells), _values(above, test.measure, cells), margin=test.margin
    )
    variants = ["/".join(split_model(name)[:2]) for name in (of, above)]
    return _Outcome(text, found, test.margin, measure.digits, variants)


def _values(name: str, measure: str, cells: Cells) -> dict[int, float]:
    panel, variant, model = split_model(name)
    found = {
        cell.seed: value_of(cell, measure, _model_at(cell, model))
        for cell in cells.get((panel, variant), ())
    }
    return {seed: value for seed, value in found.items() if value is not None}


def _model_at(cell: Cell, model: str) -> str:
    """Return the key of a model; the last step is the student itself."""
    is_last = model.isdigit() and cell.training and int(model) == cell.training.num_steps
    return STUDENT if is_last else model


def _words(name: str) -> str:
    panel, variant, model = split_model(name)
    place = f"{variant} ({panel})"
    if model == STUDENT:
        return place
    return f"{place} after {model} steps" if model.isdigit() else f"the {model} model of {place}"


def _correlate(test: Test, other: str, panel: str, cells: Cells) -> _Outcome:
    """Correlate two measures over the students of a panel, seed by seed."""
    rows = {key: row for key, row in cells.items() if key[0] == panel}
    points: dict[int, list[tuple[float, float]]] = {}
    for row in rows.values():
        for cell in row:
            for model in (STUDENT, *(name for name in cell.models if name.isdigit())):
                pair = value_of(cell, test.measure, model), value_of(cell, other, model)
                if pair[0] is not None and pair[1] is not None:
                    points.setdefault(cell.seed, []).append((pair[0], pair[1]))
    found = [spearman(*zip(*pairs, strict=True)) for pairs in points.values()]
    known = [rho for rho in found if rho is not None]
    text = (
        f"{measure_of(test.measure).text} rises with {measure_of(other).text} over the students of "
        f"{panel} (Spearman's correlation)"
    )
    return _Outcome(text, of_values(known) if known else None, 0.0, 2, [panel])


def _find_peak(test: Test, name: str, cells: Cells) -> _Outcome:
    """Compare a measure at its peak with those before training and at the end.

    For each seed the peak is chosen by the mean over the other seeds, since choosing it by the
    seed's own values would favour the claim.
    """
    panel, variant, _ = split_model(name)
    row = cells.get((panel, variant), ())
    measure = measure_of(test.measure)
    text = f"{measure.text} of {_words(name)} is highest between start and end of training"
    curves = {cell.seed: _curve(cell, test.measure) for cell in row}
    steps = [0, *common_steps(row)]
    if len(curves) < 2 or len(steps) < 3 or any(set(steps) - set(c) for c in curves.values()):
        return _Outcome(text, None, 0.0, measure.digits, [f"{panel}/{variant}"])
    changes = []
    for seed, curve in curves.items():
        others = [other for each, other in curves.items() if each != seed]
        peak = max(steps, key=lambda step, o=others: fmean(c[step] for c in o))  # type: ignore[misc]
        changes.append(min(curve[peak] - curve[0], curve[peak] - curve[steps[-1]]))
    return _Outcome(text, of_values(changes), 0.0, measure.digits, [f"{panel}/{variant}"])


def _curve(cell: Cell, measure: str) -> dict[int, float]:
    """Return step → value, with step 0 for the rescaled model."""
    models = {0: RESCALED} | {step: _model_at(cell, str(step)) for step in saved_steps(cell)}
    found = {step: value_of(cell, measure, model) for step, model in models.items()}
    return {step: value for step, value in found.items() if value is not None}
