"""Results on a terminal: a drawn table that fits; Markdown elsewhere."""

import io

import pytest
from rich.console import Console

from longred.cli.evaluation import _what_is_compared
from longred.cli.results import print_markdown
from longred.config import EvaluationConfig
from longred.report.text_table import Table

RESULT = Table(
    [
        "model",
        "cloze",
        "key_recall",
        "short average",
        "short retention",
        "RULER 256",
        "RULER 1,024",
        "average",
        "similarity",
        "nats/token",
    ],
    [
        ["original", "62.5", "90.0", "73.7", "100.0", "92.0", "20.0", "60.1", "1.0000", "2.570"],
        ["cpt", "61.0", "8", "72.0", "97.7 [95.9, 99.5]", "90.0", "86.0", "76.2", "0.99", "2.575"],
    ],
)
TEXT = f"{RESULT.markdown()}\nScores in percent.\n"


def printed(width: int, *, is_terminal: bool) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=is_terminal, color_system=None)
    print_markdown(TEXT, console)
    return [line.rstrip() for line in output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (60, ["cloze", "key_recall", "similarity", "nats/token"]),
        (80, ["cloze", "key_recall", "nats/token"]),
        (100, ["key_recall"]),
        (160, []),
    ],
)
def test_a_narrow_terminal_shows_the_most_important_columns_and_names_the_others(
    width: int, left_out: list[str]
) -> None:
    lines = printed(width, is_terminal=True)
    assert all(len(line) <= width for line in lines)
    text = " ".join(lines)
    assert "97.7 [95.9, 99.5]" in text
    assert "Scores in percent." in lines
    assert "…" not in text
    assert "|" not in text.replace("`| cat`", "")
    if left_out:
        assert f"too wide for {width} columns: {', '.join(left_out)}; `| cat` prints all" in text
    else:
        assert "too wide" not in text
    row = next(line.split() for line in lines if line.startswith("original"))
    assert len(row) == len(RESULT.header) - len(left_out)


def test_a_pipe_gets_the_markdown_as_it_is() -> None:
    assert printed(20, is_terminal=False) == [*TEXT.splitlines(), ""]


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        (
            "demo",
            "prompts of local short tasks have up to 256 tokens; rows of text have 256 tokens (",
        ),
        ("paper", "rows of text have 256 tokens (evaluation.short_window; "),
    ],
)
def test_the_size_of_prompts_is_said_of_local_tasks_alone(suite: str, words: str) -> None:
    values = {"original_window": 4096, "target_window": 4096, "short": {"suite": suite}}
    config = EvaluationConfig.model_validate({**values, "short_window": 256})
    assert _what_is_compared(config, ["demo"]).startswith(words)
