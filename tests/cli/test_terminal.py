"""Terminal output: each stage once, in order; progress bars only on a real terminal."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longred.cli.score_board import ScoreBoard
from longred.cli.terminal import Terminal
from longred.evaluation.tasks import Task
from longred.runs.record import RunRecord, StageRecord


def record() -> RunRecord:
    return RunRecord("20261122-101500-demo-a1b2", "demo", [], {}, "d" * 16)


def test_without_a_terminal_there_are_lines_and_no_control_codes() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=100, highlight=False))
    run = record()
    terminal.changed(run)
    stage = StageRecord("training/cpt", "training")
    run.stages.append(stage)
    terminal.changed(run)
    terminal._last_line = -1e9
    terminal.progressed(stage, 3, 60, "loss 2.5 [cpt]")
    terminal.progressed(stage, 4, 60, "too soon")
    stage.status, stage.seconds, stage.digest = "ran", 12.34, "0123456789abcdef"
    terminal.changed(run)
    run.status = "finished"
    terminal.changed(run)
    assert output.getvalue().splitlines() == [
        "run 20261122-101500-demo-a1b2",
        "  training/cpt           3 of 60  loss 2.5 [cpt]",
        "  training/cpt           ran          12.3 s  0123456789abcdef",
    ]


def test_on_a_terminal_a_bar_is_shown_and_taken_away() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=120, force_terminal=True, no_color=True))
    run = record()
    stage = StageRecord("data", "data")
    run.stages.append(stage)
    terminal.progressed(stage, 1, 2, "tokens")
    assert terminal._bar is not None
    stage.status = "failed"
    terminal.changed(run)
    assert terminal._bar is None
    assert "failed" in output.getvalue()


STEP = (
    "1,234,567 tokens/s, longred-c: loss 2.7500 (long 2.5000, short_distill 0.0213), "
    "gradient 1.23, MFU 0.41, 3.0 GiB, 2 h 5 min left"
)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_only_the_text_of_a_training_yields_to_a_narrow_terminal(width: int) -> None:
    terminal = Terminal(Console(file=io.StringIO(), width=width, force_terminal=True))
    stage = StageRecord("training/attention-distill-131072", "training")
    # A resumed training: its steps take longer than the bar's own period for estimates.
    terminal.progressed(stage, 1999, 12000, STEP)
    bar, seconds = terminal._bar, 1000.0
    assert bar is not None
    bar.get_time = lambda: seconds
    for step in (2000, 2001, 2002):
        seconds += 193
        terminal.progressed(stage, step, 12000, STEP)
    terminal._close_bar()
    output = io.StringIO()
    Console(file=output, width=width).print(bar.get_renderable())
    (line,) = output.getvalue().splitlines()
    assert len(line) <= width
    assert line.rstrip().endswith("…")
    bar_width = 24 if width == 160 else 10
    columns = line[2:].split()
    assert columns[0] == "training/attention-di…"
    assert set(columns[1]) <= set("━╸╺")
    assert line.index("2002/12000") - line.index("━") == bar_width + 1
    assert columns[2:6] == ["2002/12000", "536:00:14", "1,234,567", "tokens/s,"]


@pytest.mark.parametrize("width", [80, 160])
def test_a_reason_that_does_not_fit_stands_below_its_stage(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, no_color=True, highlight=False)
    terminal = Terminal(console)
    run = record()
    reason = "training.learning_rate: 0.0002 -> 0.0001; data changed"
    stage = StageRecord("training/cpt", "training", "ran", digest="0" * 16, reason=reason)
    stage.seconds = 12.3
    run.stages.append(stage)
    terminal.changed(run)
    lines = [line.rstrip() for line in output.getvalue().splitlines()[1:]]
    line = f"  training/cpt           ran          12.3 s  {'0' * 16}"
    assert lines == ([line, f"    {reason}"] if width == 80 else [f"{line}  {reason}"])


def task(**values: Any) -> Task:
    return Task(
        kind="ruler",
        metric="recall",
        chance=0.0,
        num_samples=10,
        max_tokens=131_072,
        path=Path("samples/a.jsonl"),
        sha256="0" * 64,
        **values,
    )


RESULT = {"score": 87.5, "interval": [61.25, 98.0], "unparsed": 3}


def test_a_narrow_score_board_cuts_the_names_of_tasks_and_no_score() -> None:
    models = ["original", "rescaled", "mix-cpt", "longred-c"]
    output = io.StringIO()
    console = Console(file=output, width=80)
    board = ScoreBoard(models, console)
    unit = task(name="multi_hop_tracking_of_variables_in_long_texts", length=131_072)
    for model in models:
        board.add(model, unit, RESULT)
    output.seek(0)
    output.truncate()
    console.print(board._table())
    lines = output.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    (row,) = (line for line in lines if "multi" in line)
    assert row.count("87.5") == 4
    assert "…" in row
    assert [line.count("[61.2, 98.0]") for line in lines].count(4) == 1
    assert [line.count("(3 unparsed)") for line in lines].count(4) == 1


def test_without_a_terminal_a_score_is_one_line_with_its_interval() -> None:
    output = io.StringIO()
    board = ScoreBoard(["cpt"], Console(file=output, width=40, highlight=False))
    board.add("cpt", task(name="qa_1", length=4096, builtin=True), RESULT)
    board.add("cpt", task(name="vt"), {"score": 50.0, "interval": None, "unparsed": 0})
    first, second = output.getvalue().splitlines()
    assert first.split(maxsplit=1) == [
        "cpt",
        "qa_1 (built-in) at 4,096         87.5 [61.2, 98.0] (3 unparsed)",
    ]
    assert second.split() == ["cpt", "vt", "50.0"]
