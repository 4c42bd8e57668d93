"""Tables of text cells, written as Markdown and read back from it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

NOT_AVAILABLE = "n/a"
_ESCAPES = str.maketrans({"\\": "\\\\", "|": "\\|", "\n": " "})
_CELL = re.compile(r"((?:[^\\|]|\\.)*)\|")


@dataclass(frozen=True, slots=True)
class Table:
    """A header and rows of text; the first column names the row, the others are numbers."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""

        def line(cells: Sequence[str]) -> str:
            escaped = [cell.translate(_ESCAPES) for cell in cells]
            return "| " + " | ".join(escaped) + " |\n"

        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return "".join(map(line, [self.header, rule, *self.rows]))


def read_blocks(markdown: str) -> list[Table | str]:
    """Return the tables and paragraphs of a Markdown text whose tables `Table.markdown` wrote."""
    blocks: list[Table | str] = []
    for text in re.split(r"\n\s*\n", markdown.strip()):
        lines = text.splitlines()
        if len(lines) >= 2 and lines[0].startswith("| ") and lines[1].startswith("| ---"):
            header, _, *rows = map(_cells, lines)
            blocks.append(Table(header, rows))
        elif text:
            blocks.append(text)
    return blocks


def _cells(line: str) -> list[str]:
    """Return the cells of a table's line."""
    cells = (match[1].strip() for match in _CELL.finditer(line.removeprefix("|")))
    return [re.sub(r"\\(.)", r"\1", cell) for cell in cells]
