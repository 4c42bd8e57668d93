"""The file of a study: what is read, what is refused and how, and the runs that it plans."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longred.errors import ConfigError
from longred.study.cells import distinct, plan_cells
from longred.study.spec import load_study, packaged_studies, split_model

SMALL: dict[str, Any] = {
    "title": "Two methods",
    "recipe": "demo",
    "seeds": [0, 1],
    "set": ["training.num_steps=2"],
    "panels": {
        "four": {
            "title": "Four times",
            "baseline": "longred-c",
            "set": ["evaluation.short.num_samples=8"],
            "variants": {
                "longred-c": {},
                "cpt": {"set": ["training.method=cpt"], "seeds": [1, 2]},
            },
        }
    },
    "claims": [
        {
            "text": "One keeps more.",
            "tests": [{"measure": "short_average", "of": "four/longred-c", "above": "four/cpt"}],
        }
    ],
}


def written(tmp_path: Path, change: Callable[[dict[str, Any]], object] | None = None) -> str:
    values = yaml.safe_load(yaml.safe_dump(SMALL, sort_keys=False))
    if change is not None:
        change(values)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_runs_are_planned_seed_by_seed_with_the_settings_of_study_panel_and_variant(
    tmp_path: Path,
) -> None:
    name, study = load_study(written(tmp_path))
    cells = plan_cells(study)
    assert name == "small"
    assert [cell.name for cell in cells] == [
        "four/longred-c seed 0",
        "four/longred-c seed 1",
        "four/cpt seed 1",
        "four/cpt seed 2",
    ]
    cell = cells[2]
    assert cell.overrides == (
        "training.baselines=[]",
        "training.num_steps=2",
        "evaluation.short.num_samples=8",
        "training.method=cpt",
        "seed=1",
    )
    assert (cell.config.seed, cell.config.training.method) == (1, "cpt")
    assert cell.config.training.baselines == []
    assert cell.command.startswith("longred run demo 'training.baselines=[]' training.num_steps=2 ")


def test_a_later_setting_replaces_an_earlier_one(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        variants = values["panels"]["four"]["variants"]
        variants["long"] = {"set": ["training.num_steps=5"]}

    cells = plan_cells(load_study(written(tmp_path, change))[1], ["four/long"])
    assert {cell.config.training.num_steps for cell in cells} == {5}
    assert all(sum("num_steps" in each for each in cell.overrides) == 1 for cell in cells)


def test_variants_with_the_same_settings_are_one_run(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        # A path cannot change a result.
        variants = values["panels"]["four"]["variants"]
        variants["same"] = {"set": ["training.save_every_steps=7"]}

    cells = plan_cells(load_study(written(tmp_path, change))[1])
    assert len(cells) == 6
    assert len(distinct(cells)) == 4


def test_a_part_of_a_study_is_chosen_by_panel_or_variant(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))[1]
    assert len(plan_cells(study, ["four"])) == 4
    assert {cell.variant for cell in plan_cells(study, ["four/cpt"])} == {"cpt"}
    with pytest.raises(ConfigError, match=r"--only: five is neither a panel nor a variant; .*four"):
        plan_cells(study, ["five"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(seeds=[]), r"seeds: .*small\.yaml:3"),
        (lambda s: s.update(sets=[]), r"sets: unknown key; did you mean set"),
        (lambda s: s["panels"]["four"].update(baseline="x"), r"panels\.four: baseline: x is not"),
        (
            lambda s: s["panels"]["four"]["variants"]["cpt"].update(set=["x"]),
            r"panels\.four\.variants\.cpt\.set\.0: ",
        ),
        (
            lambda s: s["claims"][0]["tests"][0].update(of="four/y"),
            r"claims\.0\.tests\.0: four/y names none of four/longred-c, four/cpt",
        ),
        (
            lambda s: s["claims"][0]["tests"][0].update(measure="speed"),
            r"claims\.0\.tests\.0\.measure: speed: no such measure",
        ),
        (
            lambda s: s["claims"][0].update(tests=[{"measure": "ruler"}]),
            r"give exactly one of above, rises_with and peaks",
        ),
        (
            lambda s: s["claims"][0]["tests"][0].update(panel="four"),
            r"rises_with and panel belong together",
        ),
        (lambda s: s.clear(), "a study is a mapping|title: is required"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(written(tmp_path, change))


def test_wrong_settings_of_a_variant_are_refused_with_its_place(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["panels"]["four"]["variants"]["cpt"]["set"] = ["training.num_step=3"]

    study = load_study(written(tmp_path, change))[1]
    wanted = r"panels\.four\.variants\.cpt: training\.num_step: unknown key; did you mean"
    with pytest.raises(ConfigError, match=wanted):
        plan_cells(study)


def test_an_unknown_study_is_refused_with_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match=r"demoo: no such study or file.*did you mean demo\?"):
        load_study("demoo")


@pytest.mark.parametrize("name", packaged_studies())
def test_packaged_studies_are_valid_and_test_every_claim_of_the_paper(name: str) -> None:
    _, study = load_study(name)
    cells = plan_cells(study)
    assert len(cells) >= len(study.seeds)
    for claim in study.claims:
        assert claim.source or claim.ours


def test_models_are_named_by_panel_variant_and_model() -> None:
    assert split_model("four/cpt") == ("four", "cpt", "student")
    assert split_model("four/cpt:rescaled") == ("four", "cpt", "rescaled")
