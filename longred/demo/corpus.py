"""The demo corpus: the source text of the Python standard library that runs this program."""

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


def library_root() -> Path:
    """Folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_documents(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield `(posix path relative to root, text)` of every module outside tests, sorted by path.

    Line ends become a single newline. Files that cannot be read or are not UTF-8 are skipped;
    their number is logged. Raises FileNotFoundError when `root` is not a folder.
    """
    root = library_root() if root is None else Path(root)
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


def training_documents(root: Path | None = None) -> list[tuple[str, str]]:
    """The modules that base training and its tokenizer may see, as `(path, text)`."""
    return [item for item in library_documents(root) if not _held_out(item[0])]


def held_out_documents(root: Path | None = None) -> list[tuple[str, str]]:
    """The modules that base training never sees, as `(path, text)`."""
    return [item for item in library_documents(root) if _held_out(item[0])]


def _held_out(relative_path: str) -> bool:
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
