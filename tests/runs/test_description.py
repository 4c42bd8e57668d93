"""MLflow shows first what tells runs apart: their changes, their table, five metrics with units."""

from pathlib import Path

import pytest

from longred.runs import description
from longred.runs.description import headlines, note, run_name, run_page, runs_page, source_tags
from longred.runs.record import RunRecord

RUN_ID = "20261130-101500-demo-a1b2"


def record(overrides: list[str], **fields: str) -> RunRecord:
    config = {"name": "demo", "tracking": {}, "training": {"method": "longred-c"}}
    values = {"recipe": "demo", **fields}
    return RunRecord(id=RUN_ID, overrides=overrides, config=config, digest="d", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "part", "name"),
    [
        ([], "", f"longred-c · {RUN_ID}"),
        (["seed=3", "training.num_steps=4"], "", f"num_steps=4 seed=3 · longred-c · {RUN_ID}"),
        (["data.a.b=9"], "", f"data.a.b=9 · longred-c · {RUN_ID}"),
        (["training.method=longred-c", "store.path=x"], "", f"longred-c · {RUN_ID}"),
        (["seed=3"], "only evaluation", f"only evaluation · seed=3 · longred-c · {RUN_ID}"),
    ],
)
def test_a_name_begins_with_what_differs(overrides: list[str], part: str, name: str) -> None:
    assert run_name(record(overrides, part=part)) == name


def test_a_long_name_keeps_its_end() -> None:
    name = run_name(record([f"data.key_{n}=value" for n in range(40)]))
    assert len(name) == description.NAME_CHARACTERS
    assert name.endswith(f"… · longred-c · {RUN_ID}")


def test_the_description_is_the_result_table_then_the_command(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| model | average |\n")
    page = "http://127.0.0.1:4200/runs/flow-run/1"
    text = note(record(["seed=3"], prefect_url=page), tmp_path)
    assert text.startswith("| model | average |\n\n`longred run demo seed=3`")
    assert f"({page})" in text
    failed = note(record([], status="failed", error="disk is full"))
    assert failed.startswith("**failed**: disk is full")
    (tmp_path / "table.md").write_text("| 1 |\n" * 5000)
    cut = note(record([]), tmp_path)
    assert len(cut) < 8000
    assert "table.md" in cut.splitlines()[-1]


def test_headlines_sort_before_all_metrics_and_take_the_longest_length() -> None:
    def line(key: str, value: float, step: int = 0) -> dict[str, object]:
        return {"key": key, "value": value, "step": step, "time": 1.0}

    lines = [
        line("capacity/short", 61.5),
        line("short/cloze", 61.5),
        line("ruler/average", 40.0, 512),
        line("ruler/average", 80.0, 256),
        line("held_out/nats_per_token", 2.5),
    ]
    found = {each["key"]: (each["value"], each["step"]) for each in headlines(lines)}
    assert found == {
        "1_short_average_percent": (61.5, 0),
        "3_ruler_average_percent": (40.0, 0),
        "5_held_out_nats_per_token": (2.5, 0),
    }
    names = [*description.HEADLINES.values(), *description.HEADLINES, "cpt/short/cloze"]
    assert sorted(names)[:5] == list(description.HEADLINES.values())


def test_the_source_is_recipe_commit_and_user() -> None:
    tags = source_tags(record([]))
    assert tags["mlflow.source.name"] == "longred/recipes/demo.yaml"
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.git.commit"] == description.commit()
    own = source_tags(record([], recipe="recipes/mine.yaml"))
    assert own["mlflow.source.name"] == "recipes/mine.yaml"


def test_links_open_the_view_of_trained_models() -> None:
    page = "http://127.0.0.1:5000"
    assert runs_page(page, "1") == f"{page}/#/experiments/1/runs?workflowType=machine_learning"
    assert run_page(page, "1", "ab") == (
        f"{page}/#/experiments/1/runs/ab?workflowType=machine_learning"
    )
