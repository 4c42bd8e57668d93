"""Terminal output: each stage once, in order; progress bars only on a real terminal."""

import io

from rich.console import Console

from longred.cli.terminal import Terminal
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
