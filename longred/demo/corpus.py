"""The demo corpus: the source text of the running Python's standard library."""

import logging
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from longred.data.documents import document_id, is_held_out

logger = logging.getLogger(__name__)

SOURCE_NAME = "library"
VALIDATION_FRACTION = 0.1

_EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "ensurepip"}
)
# Written by the installer or the distribution, so they differ between machines.
_EXCLUDED_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")


def library_documents(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield the POSIX path relative to `root` and the text of every module outside tests, by path.

    Every line end becomes a single newline. Unreadable or non-UTF-8 files are skipped and counted
    in the log.

    Args:
        root: folder of the library; that of the running interpreter if None.

    Raises:
        FileNotFoundError: `root` is not a folder.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    if not root.is_dir():
        raise FileNotFoundError(f"no standard library at {root}")
    num_skipped = 0
    for relative_path in sorted(_module_paths(root)):
        try:
            text = (root / relative_path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            num_skipped += 1
            logger.debug("skipped %s: %s", relative_path, error)
            continue
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        if text.strip():
            yield relative_path, text
    if num_skipped:
        logger.info("skipped %d unreadable or non-UTF-8 files under %s", num_skipped, root)


def training_documents() -> list[tuple[str, str]]:
    """Return path and text of the modules that base training and its tokenizer may use."""
    return [item for item in library_documents() if not _is_held_out(item[0])]


def held_out_documents() -> list[tuple[str, str]]:
    """Return path and text of the modules that base training never uses."""
    return [item for item in library_documents() if _is_held_out(item[0])]


def _is_held_out(relative_path: str) -> bool:
    return is_held_out(document_id(SOURCE_NAME, relative_path), VALIDATION_FRACTION)


def _module_paths(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in _EXCLUDED_FOLDERS and not name.startswith("config-")
        ]
        for name in names:
            if name.endswith(".py") and not name.startswith(_EXCLUDED_PREFIXES):
                yield (Path(folder) / name).relative_to(root).as_posix()
