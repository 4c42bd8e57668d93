"""A dry run checks the trainings that the run would do, and no others."""

import pytest

from longred.cli.runs import _trained
from longred.runs.record import StageRecord


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["mix-cpt"], ["mix-cpt"]),
        (["longred-c-512", "longred-c"], ["longred-c"]),
        (["cpt-1024"], ["cpt"]),
        ([], []),
    ],
)
def test_only_the_methods_of_its_trainings(names: list[str], trained: list[str]) -> None:
    stages = [StageRecord(f"training/{name}", "training") for name in names]
    stages.append(StageRecord("evaluation/cpt", "evaluation"))
    assert _trained(["longred-c", "cpt", "mix-cpt"], stages) == trained
