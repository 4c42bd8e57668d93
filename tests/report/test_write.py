"""The report's folder is complete, deterministic, self-contained and names its inputs."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from study import LENGTHS, MADE_BY, PROFILED, RECIPE, Study, write_report

from longred import __version__
from longred.errors import ConfigError, MismatchError
from longred.report.inputs import read_inputs
from longred.store.artifacts import canonical_digest
from longred.store.journal import Journal


class Page(HTMLParser):
    """Collects the tags, ids and links of a page, including everything that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    found = Page()
    found.feed((report / "index.html").read_text(encoding="utf-8"))
    return found


def test_the_folder_is_whole(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {
        "index.html",
        "table.md",
        "scores.json",
        "metrics.jsonl",
        "plots",
    }
    drawings = sorted(path.suffix for path in (report / "plots").iterdir())
    assert drawings == [".png"] * 14 + [".svg"] * 14


def test_the_page_loads_nothing_from_elsewhere(report: Path, page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    # An SVG's namespaces are names and not addresses that anything loads.
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)


def test_ids_are_unique_and_text_is_escaped(report: Path, page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "<h1>A &lt;title&gt; &amp; more</h1>" in html
    assert "&lt;y&gt; &amp; z" in html
    assert "<y>" not in html


def test_every_plot_has_its_table(page: Page) -> None:
    assert page.tags.count("figure") == 14
    assert page.tags.count("svg") == 14
    assert page.tags.count("details") >= 14


def test_every_drawing_has_a_name_and_a_description(report: Path, page: Page) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'<svg role="img" aria-labelledby="(\S+)" aria-describedby="(\S+)"', html)
    assert len(named) == 14
    assert {name for pair in named for name in pair} <= set(page.ids)


def test_title_caption_and_drawing_are_printed_on_one_page(report: Path) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    kept = re.findall(r'<div class="kept">\s*<h3.*?</svg>\s*</div>\s*</div>', html, re.DOTALL)
    assert len(kept) == 14
    assert all(part.count("<figcaption") == 1 for part in kept)
    rule = next(line for line in html.splitlines() if line.strip().startswith(".kept"))
    assert "break-inside: avoid" in rule


def test_the_page_says_what_it_shows_and_what_made_it(report: Path) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", html))
    expected = {"run": MADE_BY.run, "date": MADE_BY.date, "model": MADE_BY.model}
    expected |= {"longred": __version__, "recipe": "demo"}
    assert {name: facts[name] for name in expected} == expected
    terms = re.findall(r"<div><dt>([^/]*?)</dt><dd>.*?\.</dd>", html)
    assert {"original", "rescaled", "cpt", "RULER", "similarity"} <= set(terms)
    assert "mix-cpt" not in html
    assert "choose the line that continues a passage" in html
    assert "find one number among repeated sentences" in html


def test_numbers_can_be_traced(report: Path, study: Study) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    folders = [*study.folders.values(), *study.students.values(), *study.scores.values()]
    for folder in folders:
        assert folder.name.rpartition("-")[2] in html
    for path in study.scores.values():
        assert json.loads((path / "scores.json").read_text())["checkpoint"] in html
    assert all(digest in html for digest in PROFILED.values())
    assert canonical_digest(RECIPE)[:16] in html
    assert "learning_rate: 0.0005" in html
    assert "torch: 2.13.0" in html


@pytest.mark.slow
def test_the_same_inputs_write_the_same_bytes(study: Study, report: Path, tmp_path: Path) -> None:
    again = write_report(study, tmp_path / "again")
    for path in sorted(report.rglob("*")):
        if path.is_file() and path.name != "metrics.jsonl":
            other = again / path.relative_to(report)
            assert path.read_bytes() == other.read_bytes(), path.name


def test_the_markdown_table_has_the_columns_of_a_study(report: Path) -> None:
    lines = (report / "table.md").read_text(encoding="utf-8").splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header == [
        "model",
        "cloze",
        "key_recall",
        "continuation",
        "short average",
        "short retention",
        "RULER 256",
        "RULER 512",
        "RULER 1,024",
        "average",
        "similarity",
        "nats/token",
    ]
    assert any(line.startswith("- bracket_closing: ") for line in lines)
    assert "- capacity coding: all of its tasks were dropped." in lines
    words = next(line for line in lines if line.startswith("The short average is the mean over"))
    assert words.endswith("of each: reading (cloze, key_recall); general (continuation).")


def test_rows_are_references_then_baselines_then_the_method(study: Study) -> None:
    mixed = {name: study.scores[name] for name in ("longred-c", "cpt", "rescaled", "original")}
    inputs = read_inputs(
        recipe=RECIPE,
        profile=study.folders["profile"],
        selection=study.folders["selection"],
        students=study.students,
        scores=mixed,
        data=study.folders["data"],
        samples=study.folders["samples"],
    )
    assert list(inputs.scores) == ["original", "rescaled", "cpt", "longred-c"]


def test_scores_have_the_form_that_show_prints(report: Path) -> None:
    scores = json.loads((report / "scores.json").read_text())
    assert set(scores) == {"original", "rescaled", "cpt", "longred-c"}
    for model in scores.values():
        assert set(model["retention"]) == {"short", "capacities", "ruler", "ruler_v2"}
        assert set(model["capacities"]) == {"reading", "general"}
        assert set(model["ruler"]) == {str(length) for length in LENGTHS}
        assert isinstance(model["similarity"], float)
        assert isinstance(model["short"]["average"], float)


def test_metrics_name_the_model_and_mlflow_takes_every_key(report: Path) -> None:
    lines = Journal(report / "metrics.jsonl").read()
    scores = json.loads((report / "scores.json").read_text())
    found = {(line["key"], line["step"]): line["value"] for line in lines}
    for name, model in scores.items():
        assert found[f"{name}/retention/short", 0] == model["retention"]["short"]
        assert found[f"{name}/capacity/short", 0] == model["short"]["average"]
        for capacity in ("reading", "general"):
            kept = model["retention"]["capacities"][capacity]
            assert found[f"{name}/capacity/{capacity}", 0] == model["capacities"][capacity]
            assert found[f"{name}/retention/{capacity}", 0] == kept
        for length in LENGTHS:
            average = model["ruler"][str(length)]["average"]
            assert found[f"{name}/ruler/average", length] == average
    assert found["retention/short", 0] == scores["longred-c"]["retention"]["short"]
    assert found["similarity/last", 0] == scores["longred-c"]["similarity"]
    assert all(re.fullmatch(r"[\w\-./ ]+", line["key"]) for line in lines)


@pytest.mark.medium
def test_a_run_of_one_method_without_references_still_reports(study: Study, tmp_path: Path) -> None:
    report = write_report(
        study,
        tmp_path / "out",
        students={"longred-c": study.students["longred-c"]},
        scores={"longred-c": study.scores["longred-c"]},
    )
    scores = json.loads((report / "scores.json").read_text())
    assert scores["longred-c"]["retention"]["short"] is None
    assert "n/a" in (report / "table.md").read_text()
    keys = {line["key"] for line in Journal(report / "metrics.jsonl").read()}
    assert "retention/short" not in keys
    assert "capacity/short" in keys


def test_bad_input_is_refused_with_a_reason(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.references"):
        write_report(study, tmp_path / "a", scores={})
    with pytest.raises(ConfigError, match="original_window"):
        write_report(study, tmp_path / "b", recipe={"name": "demo"})
    broken = tmp_path / "profile"
    shutil.copytree(study.folders["profile"], broken)
    (broken / "drift.json").unlink()
    with pytest.raises(MismatchError, match=r"drift\.json"):
        write_report(study, tmp_path / "c", profile=broken)
