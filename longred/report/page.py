"""One HTML page that holds everything in itself: no script, no font, no picture from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longred.report.plots import Plot, inline_svg

TEMPLATE = "page.html"
PROMPT_START, PROMPT_END = 500, 900


def render(content: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """Return the page as HTML; every text is escaped, only the drawings are inserted as markup.

    Args:
        content: what the page says, by the names that the template uses.
        plots: the drawings, with captions and tables.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shortened"] = shortened
    drawings = [{"plot": plot, "svg": inline_svg(plot)} for plot in plots]
    return environment.get_template(TEMPLATE).render(content, plots=drawings)


def shortened(text: str) -> str:
    """Return a long prompt's start and end, and how much lies between them."""
    left_out = len(text) - PROMPT_START - PROMPT_END
    if left_out <= 200:
        return text
    return (
        f"{text[:PROMPT_START]}\n\n[… {left_out:,} characters left out …]\n\n{text[-PROMPT_END:]}"
    )
