"""Test the web pages as a user: rerun a stage from Prefect's form, compare both runs in MLflow."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import SMALL, Pipeline, ask, until

from longred.runs.record import read_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
QUICK = [
    "training.num_steps=2",
    "training.warmup_steps=0",
    "evaluation.ruler.lengths=[256]",
    "evaluation.ruler.num_samples=4",
    "evaluation.short.num_samples=8",
    "evaluation.similarity_tokens=1024",
    "evaluation.references=[]",
    "report.min_points_above_chance=0",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """Yield a browser page; save a screenshot of its last state in the test's folder."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        try:
            yield page
        finally:
            page.screenshot(path=tmp_path / "end.png")
            browser.close()


def press_submit(page: Any) -> None:
    """Press Submit by the keyboard: a notice may cover it, and stays while the pointer is on it."""
    page.get_by_role("button", name="Submit").press("Enter")


def submit(page: Any) -> None:
    """Submit the form, up to three times if the server is busy; wait for the deployment."""
    from playwright.sync_api import TimeoutError as NotSeen

    deployment = re.compile(r"/deployments/deployment/[0-9a-f-]+(\?.*)?$")
    for _ in range(3):
        press_submit(page)
        with contextlib.suppress(NotSeen):
            return page.wait_for_url(deployment, timeout=30_000, wait_until="commit")
    raise AssertionError("the form was not submitted after three tries; see end.png")


def test_a_stage_is_run_again_from_the_form_and_both_runs_are_compared(
    pipeline: Pipeline, page: Any, tmp_path: Path
) -> None:
    assert pipeline.run("run", "demo", *SMALL, *QUICK) == 0, pipeline.output()
    earlier = pipeline.record()

    page.goto(pipeline.api.removesuffix("/api") + "/deployments")
    page.get_by_role("link", name="evaluation", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_role("button", name="Add item").click()
    fields = page.locator("form textarea")
    fields.nth(0).fill(earlier.id)
    fields.nth(1).fill("evaluation.short.num_sample=12")
    page.screenshot(path=tmp_path / "form.png")
    press_submit(page)
    page.get_by_text("does not match").first.wait_for()
    fields.nth(1).fill("evaluation.short.num_samples=12")
    submit(page)
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=180_000)

    later = pipeline.record()
    assert later.origin == earlier.id
    # The notification about the new run has a button too, but it disappears by itself.
    page.get_by_role("link", name=f"evaluation of {earlier.id}").first.click()
    page.wait_for_url(f"**/{later.prefect_flow_run_id}*", wait_until="commit")
    page.get_by_text("Task Runs", exact=True).first.wait_for()
    page.get_by_text("evaluation/longred-c").first.wait_for()
    page.screenshot(path=tmp_path / "run.png")
    # The form refused the unknown key before a flow run was created.
    ours = ask(f"{pipeline.api}/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["stage"]}}})
    asked = [each["parameters"] for each in ours if each["parameters"]["run"] == earlier.id]
    assert {tuple(each["overrides"]) for each in asked} == {("evaluation.short.num_samples=12",)}
    stages = {name: stage.status for name, stage in later.last_attempts().items()}
    assert stages["training/longred-c"] == "skipped"
    assert stages["evaluation/longred-c"] == "ran"
    assert stages["report"] == "stale"

    def shown(run_id: str) -> str | None:
        return read_run(pipeline.store, run_id).mlflow_run_id

    both = [until(lambda id_=run.id: shown(id_)) for run in (earlier, later)]
    page.goto(
        f"{pipeline.mlflow}/#/compare-runs?runs={json.dumps(both)}&experiments={json.dumps(['1'])}"
    )
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    page.get_by_text("Metrics", exact=True).first.wait_for()
    text = page.locator("body").inner_text()
    page.screenshot(path=tmp_path / "compare.png", full_page=True)
    assert earlier.id in text
    assert later.id in text
