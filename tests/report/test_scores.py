"""Averages, retention and dropped tasks agree with values computed by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import compare, edited
from study import LENGTHS, NUM_SAMPLES, RULER, SIMILARITY, Study

from longred.errors import MismatchError
from longred.evaluation.intervals import Averages, Draws
from longred.evaluation.tasks import write_lines
from longred.report.left_out import Dropped
from longred.report.samples import DrawReader, Unit, examples, frozen_prompts, read_answers
from longred.report.scores import Comparison, average, collect
from longred.store.artifacts import write_json

KEPT = ["cloze", "key_recall", "continuation"]
WEIGHTS = [0.25, 0.25, 0.5]


@pytest.fixture(scope="module")
def comparison(study: Study) -> Comparison:
    return compare(study.scores)


def read_draws(*folders: Path) -> Draws:
    (found,) = DrawReader().read(folders, [Unit("cloze")])
    return found


def entries(scores: dict[str, tuple[str, float]]) -> dict[str, Any]:
    """Return the short tasks of a scores.json: task → (capacity, score)."""
    return {
        task: {"score": score, "interval": None, "num_samples": 9, "chance": 25.0, "capacity": name}
        for task, (name, score) in scores.items()
    }


def compare_written(folder: Path, short: dict[str, dict[str, Any]]) -> Comparison:
    """Compare models that have short scores only."""
    for name, tasks in short.items():
        (folder / name).mkdir(exist_ok=True)
        write_json(folder / name / "scores.json", {"model": name, "short": tasks})
    return compare({name: folder / name for name in short})


def test_the_short_average_is_the_mean_of_capacities(tmp_path: Path) -> None:
    tasks = {"a": ("reading", 40.0), "b": ("reading", 60.0), "c": ("reading", 80.0)}
    original = entries({**tasks, "d": ("coding", 100.0), "e": ("general", 30.0)})
    less = {"a": ("reading", 30.0), "b": ("reading", 30.0), "c": ("reading", 60.0)}
    student = entries({**less, "d": ("coding", 90.0), "e": ("general", 99.0)})
    found = compare_written(tmp_path, {"original": original, "cpt": student})
    # e is dropped, and the capacity general with it; reading is (40 + 60 + 80) / 3.
    assert found.dropped_capacities == ["general"]
    assert found.capacities == {"reading": ["a", "b", "c"], "coding": ["d"]}
    assert found.short_weights == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    original, cpt = found.models["original"], found.models["cpt"]
    assert original["capacities"] == {"reading": 60.0, "coding": 100.0}
    assert original["short"]["average"] == 80.0
    assert cpt["capacities"] == {"reading": 40.0, "coding": 90.0}
    assert cpt["short"]["average"] == 65.0
    assert cpt["retention"]["short"] == pytest.approx(100 * 65 / 80)
    assert cpt["retention"]["capacities"] == pytest.approx({"reading": 100 * 2 / 3, "coding": 90.0})
    assert cpt["dropped_capacities"] == ["general"]


def test_a_task_without_its_capacity_is_refused(tmp_path: Path) -> None:
    whole = entries({"a": ("reading", 40.0)})
    bare = {"a": {"score": 40.0}}
    with pytest.raises(MismatchError, match=r"cpt/scores\.json: short\.a\.capacity is None"):
        compare_written(tmp_path, {"original": whole, "cpt": bare})
    other = entries({"a": ("coding", 40.0)})
    with pytest.raises(MismatchError, match="is coding, expected reading"):
        compare_written(tmp_path, {"original": whole, "cpt": other})


def test_given_tasks_are_dropped_and_no_others(study: Study) -> None:
    chosen = [Dropped(Unit("cloze"), "chosen"), Dropped(Unit("niah_single_1", 512), "chosen")]
    found = compare(study.scores, dropped=chosen)
    assert found.dropped == chosen
    assert found.capacities == {
        "coding": ["bracket_closing"],
        "reading": ["key_recall"],
        "general": ["continuation"],
    }
    assert found.ruler_tasks[512] == ["niah_single_2"]
    expected = study.average("cpt", ["bracket_closing", "key_recall", "continuation"])
    assert found.models["cpt"]["short"]["average"] == pytest.approx(expected)


def test_averages_are_those_of_the_kept_tasks(study: Study, comparison: Comparison) -> None:
    assert comparison.short_tasks == KEPT
    assert comparison.short_weights == WEIGHTS
    for name, model in comparison.models.items():
        assert model["short"]["average"] == pytest.approx(study.short_average(name))
        for length in LENGTHS:
            units = [f"{task}@{length}" for task in RULER]
            expected = study.average(name, units)
            assert model["ruler"][str(length)]["average"] == pytest.approx(expected)


def test_retention_is_the_ratio_of_averages_within_the_original_window(
    study: Study, comparison: Comparison
) -> None:
    for name, model in comparison.models.items():
        short = 100 * study.short_average(name) / study.short_average("original")
        reading = ["cloze", "key_recall"]
        kept = 100 * study.average(name, reading) / study.average("original", reading)
        units = [f"{task}@256" for task in RULER]
        ruler = 100 * study.average(name, units) / study.average("original", units)
        assert model["retention"]["short"] == pytest.approx(short)
        assert model["retention"]["capacities"]["reading"] == pytest.approx(kept)
        assert model["retention"]["ruler"]["256"] == pytest.approx(ruler)
        assert model["retention"]["ruler"]["512"] is None
        assert model["retention"]["ruler"]["1024"] is None
    assert comparison.models["original"]["retention"]["short"] == 100.0
    assert comparison.models["original"]["retention_interval"]["short"] is None


def test_retention_intervals_agree_with_a_slow_bootstrap(
    study: Study, comparison: Comparison
) -> None:
    rng = np.random.default_rng(11)
    pairs = [(study.answers["cpt", task], study.answers["original", task]) for task in KEPT]
    values = []
    for _ in range(2000):
        chosen = [rng.integers(NUM_SAMPLES, size=NUM_SAMPLES) for _ in pairs]
        ours = sum(w * p[0][i].mean() for w, p, i in zip(WEIGHTS, pairs, chosen, strict=True))
        theirs = sum(w * p[1][i].mean() for w, p, i in zip(WEIGHTS, pairs, chosen, strict=True))
        values.append(100 * ours / theirs)
    low, high = comparison.models["cpt"]["retention_interval"]["short"]
    slow_low, slow_high = np.percentile(values, [2.5, 97.5])
    # Far from 0 and 100 percent the bootstrap is a good reference, and a little narrower.
    assert slow_low - 2 < low < slow_low
    assert slow_high < high < slow_high + 2


def test_averages_have_the_intervals_of_their_weighted_tasks(
    study: Study, comparison: Comparison
) -> None:
    def draws(*names: str) -> list[Draws]:
        scores = (study.answers["cpt", name] for name in names)
        return [Draws(each[None], np.full(NUM_SAMPLES, 1 / NUM_SAMPLES)) for each in scores]

    found = comparison.models["cpt"]["interval"]
    short = [float(end) for end in Averages(draws(*KEPT), WEIGHTS).mean()]
    ruler = [float(end) for end in Averages(draws(*(f"{task}@512" for task in RULER))).mean()]
    assert found["short"] == pytest.approx(short)
    assert found["capacities"].keys() == {"reading", "general"}
    assert found["ruler"]["512"] == pytest.approx(ruler)
    assert comparison.models["original"]["interval"]["short"] is not None


def test_a_task_near_chance_is_dropped_for_all_models_and_named(comparison: Comparison) -> None:
    assert [entry.unit for entry in comparison.dropped] == [Unit("bracket_closing")]
    reason = comparison.dropped[0].reason
    assert "guessing scores 25.0" in reason
    assert "at least 10 points" in reason
    for name, model in comparison.models.items():
        assert "bracket_closing" not in model["short"]
        entry = model["dropped"][0]
        score = comparison.raw[name]["short"]["bracket_closing"]["score"]
        assert (entry["task"], entry["length"], entry["score"]) == ("bracket_closing", None, score)


def test_nothing_is_dropped_at_zero_points_unless_below_chance(study: Study) -> None:
    found = compare(study.scores, min_points_above_chance=0.0)
    below = study.answers["original", "bracket_closing"].mean() < 25
    assert bool(found.dropped) == below


def test_long_ruler_tasks_are_judged_within_the_original_window(
    study: Study, comparison: Comparison, tmp_path: Path
) -> None:
    # The original's low score at 1,024 tokens, beyond its window, drops no task.
    assert study.average("original", ["niah_single_2@1024"]) < 15
    assert comparison.ruler_tasks[1024] == list(RULER)
    weak = {"score": 6.0, "interval": [2.8, 12.0], "num_samples": NUM_SAMPLES, "chance": 0.0}
    ruler = json.loads((study.scores["original"] / "scores.json").read_text())["ruler"]
    ruler["256"]["niah_single_2"] = weak
    found = compare(edited(study, tmp_path, "original", {"ruler": ruler}))
    gone = [entry.unit for entry in found.dropped if entry.unit.task == "niah_single_2"]
    assert gone == [Unit("niah_single_2", length) for length in LENGTHS]
    assert found.ruler_tasks == {length: ["niah_single_1"] for length in LENGTHS}
    assert "at 256 tokens" in found.dropped[-1].reason


def test_an_average_with_a_missing_task_is_not_available(study: Study, tmp_path: Path) -> None:
    found = compare(edited(study, tmp_path, "cpt", {}, remove=("cloze", "niah_single_1")))
    cpt = found.models["cpt"]
    assert cpt["short"]["cloze"] is None
    assert cpt["short"]["average"] is None
    assert cpt["capacities"]["reading"] is None
    assert cpt["capacities"]["general"] == pytest.approx(study.average("cpt", ["continuation"]))
    assert cpt["retention"]["short"] is None
    assert cpt["retention"]["capacities"]["reading"] is None
    assert cpt["retention_interval"]["short"] is None
    assert cpt["ruler"]["512"]["average"] is None
    assert found.models["longred-c"]["short"]["average"] is not None
    assert found.differences == []


def test_without_the_original_nothing_is_dropped_and_retention_is_unknown(study: Study) -> None:
    folders = {name: path for name, path in study.scores.items() if name != "original"}
    found = compare(folders)
    assert found.dropped == []
    for model in found.models.values():
        assert model["retention"] == {
            "short": None,
            "capacities": dict.fromkeys(["coding", "reading", "general"]),
            "ruler": dict.fromkeys(map(str, LENGTHS)),
            "ruler_v2": {},
        }


def test_every_task_dropped_leaves_no_average(study: Study) -> None:
    found = compare(study.scores, min_points_above_chance=101.0)
    assert found.short_tasks == []
    assert found.dropped_capacities == ["coding", "reading", "general"]
    assert found.models["original"]["short"] == {"average": None}
    assert found.models["cpt"]["ruler"]["256"] == {"average": None}


def test_differences_are_in_points(study: Study, comparison: Comparison) -> None:
    short, *ruler = comparison.differences
    expected = study.short_average("longred-c") - study.short_average("cpt")
    assert short.points == pytest.approx(expected)
    assert short.interval is not None
    assert short.interval[0] < expected < short.interval[1]
    assert [entry.measure for entry in ruler] == [f"RULER at {n:,} tokens" for n in LENGTHS]


def test_similarity_is_that_of_the_last_layer(comparison: Comparison) -> None:
    for name, model in comparison.models.items():
        assert model["similarity"] == SIMILARITY[name][-1]
        assert model["similarity_per_layer"] == list(SIMILARITY[name])


def test_the_weights_of_the_original_have_its_similarity_under_any_name(
    study: Study, tmp_path: Path
) -> None:
    checkpoint = json.loads((study.scores["original"] / "scores.json").read_text())["checkpoint"]
    for same, similarity in ((checkpoint, 1.0), ("another", None)):
        change = {"checkpoint": same, "similarity": None}
        models = compare(edited(study, tmp_path / str(same), "cpt", change)).models
        assert models["cpt"]["similarity"] == similarity
        assert models["original"]["similarity"] == 1.0


def test_models_asked_different_samples_are_refused(study: Study, tmp_path: Path) -> None:
    folders = edited(study, tmp_path, "cpt", {})
    path = Unit("cloze").path(folders["cpt"])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(MismatchError, match="same frozen samples"):
        compare(folders)


def test_an_answer_may_hold_line_ends_of_unicode(tmp_path: Path) -> None:
    got = "a\u2028b\u2029c\x85d"
    write_lines(Unit("cloze").path(tmp_path), [{"id": "0", "score": 50.0, "got": got}])
    assert read_answers(tmp_path, Unit("cloze"))["0"]["got"] == got


def test_a_damaged_sample_is_named_by_file_and_line(study: Study, tmp_path: Path) -> None:
    folders = edited(study, tmp_path, "cpt", {})
    path = Unit("cloze").path(folders["cpt"])
    lines = path.read_text().splitlines()
    lines[1] = '{"id": "cloze-1"}'
    path.write_text("\n".join(lines))
    with pytest.raises(MismatchError, match=r"short-cloze.jsonl:2"):
        read_answers(folders["cpt"], Unit("cloze"))


def test_missing_samples_leave_the_interval_open(study: Study, tmp_path: Path) -> None:
    folders = edited(study, tmp_path, "cpt", {})
    shutil.rmtree(folders["cpt"] / "samples")
    found = compare(folders)
    assert found.models["cpt"]["retention"]["short"] is not None
    assert found.models["cpt"]["retention_interval"]["short"] is None
    assert found.models["cpt"]["interval"]["short"] is None
    assert found.differences[0].interval is None


def test_answers_of_one_group_widen_every_interval(study: Study, tmp_path: Path) -> None:
    """Ten answers of a group are one draw; every model answered the same groups."""
    folders = {}
    for name, place in study.scores.items():
        folders[name] = tmp_path / name
        shutil.copytree(place, folders[name])
        for path in (folders[name] / "samples").iterdir():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            grouped = [{**row, "group": f"text {i // 10}"} for i, row in enumerate(rows)]
            path.write_text("".join(json.dumps(row) + "\n" for row in grouped))
    alone, found = compare(study.scores), compare(folders)
    for before, after in zip(alone.differences, found.differences, strict=True):
        assert after.points == pytest.approx(before.points)
        assert before.interval is not None
        assert after.interval is not None
        assert after.interval[1] - after.interval[0] > before.interval[1] - before.interval[0]
    for key in ("interval", "retention_interval"):
        before, after = (each.models["cpt"][key]["short"] for each in (alone, found))
        assert after[1] - after[0] > before[1] - before[0]


def test_samples_are_paired_by_id_and_not_by_order(study: Study, tmp_path: Path) -> None:
    folders = edited(study, tmp_path, "cpt", {})
    path = Unit("cloze").path(folders["cpt"])
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    straight = read_draws(study.scores["cpt"], study.scores["original"])
    mixed = read_draws(folders["cpt"], study.scores["original"])
    assert sorted(map(tuple, straight.scores.T)) == sorted(map(tuple, mixed.scores.T))


def test_examples_show_prompt_and_every_answer(study: Study) -> None:
    unit = Unit("niah_single_1", 256)
    prompts = frozen_prompts(study.folders["samples"], unit)
    chosen = examples(study.scores, unit, 3, prompts)
    step = NUM_SAMPLES // 3
    assert [example["id"] for example in chosen] == [
        f"niah_single_1-256-{index * step}" for index in range(3)
    ]
    assert chosen[0]["prompt"].endswith("is 4821. The special number for key-0 is")
    assert [answer["model"] for answer in chosen[0]["answers"]] == list(study.scores)


def test_samples_that_lack_a_task_are_refused(study: Study) -> None:
    with pytest.raises(MismatchError, match=r"short/riddles\.jsonl"):
        frozen_prompts(study.folders["samples"], Unit("riddles"))


def test_an_average_is_never_one_of_fewer() -> None:
    assert average([1.0, 3.0]) == 2.0
    assert average([1.0, None]) is None
    assert average([]) is None


def test_the_overall_average_takes_capacities_and_the_longest_ruler(study: Study) -> None:
    comparison = collect(study.scores, original_window=256, min_points_above_chance=10.0)
    for name, model in comparison.models.items():
        longest = max(comparison.lengths)
        ruler = study.average(
            name, [f"{task}@{longest}" for task in comparison.ruler_tasks[longest]]
        )
        parts = [*model["capacities"].values(), ruler]
        assert model["overall"] == pytest.approx(sum(parts) / len(parts))


def test_a_task_without_a_score_leaves_no_average(study: Study, tmp_path: Path) -> None:
    """No model has a score: the capacity, the short and the overall average are None."""
    folders = dict(study.scores)
    for name in study.scores:
        scores = json.loads((study.scores[name] / "scores.json").read_text())
        entry = {"score": None, "reason": "its data cannot be had", "capacity": "reading"}
        change = {"short": {**scores["short"], "drop": entry}}
        folders[name] = edited(study, tmp_path / name, name, change)[name]
    model = compare(folders).models["longred-c"]
    assert model["capacities"]["reading"] is None
    assert model["capacities"]["general"] is not None
    assert model["short"]["average"] is None
    assert model["overall"] is None
    assert model["retention"]["short"] is None


def test_a_task_beside_ruler_counts_in_no_average(
    study: Study, comparison: Comparison, tmp_path: Path
) -> None:
    folders = {}
    for name, place in study.scores.items():
        ruler = json.loads((place / "scores.json").read_text())["ruler"]
        for tasks in ruler.values():
            tasks["kv_retrieval"] = {**tasks["niah_single_1"], "score": 50.0}
        folders[name] = edited(study, tmp_path, name, {"ruler": ruler})[name]
    found = compare(folders)
    for name, model in found.models.items():
        assert model["ruler"] == comparison.models[name]["ruler"]
        assert model["overall"] == comparison.models[name]["overall"]
    beside = [entry for entry in found.dropped if entry.unit.task == "kv_retrieval"]
    assert len(beside) == 3
    assert all("not one of RULER's" in entry.reason for entry in beside)
