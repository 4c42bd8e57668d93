"""Text that an override names in one word: `data=local`, `data=FOLDER`."""

import re
import sysconfig
from pathlib import Path
from typing import Any

LOCAL = "local"
"""Stands for the Python source of the packages installed beside this one."""


def sources_of(text: str) -> list[dict[str, Any]]:
    """Return the sources of a data section that read `local`, or a file, folder, glob or URL."""
    if text == LOCAL:
        packages = Path(sysconfig.get_paths()["purelib"])
        return [{"name": "packages", "kind": "files", "path": str(packages / "**" / "*.py")}]
    stem = Path(text.split("*")[0].rstrip("/")).stem
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "text"
    return [{"name": name, "kind": "files", "path": text}]
