"""Cache of the SHA-256 of large files, keyed by size, times and inode."""

import json
import time
from functools import cached_property
from pathlib import Path

from longred.store.artifacts import sha256_file, write_json

SETTLED_SECONDS = 2.0
"""A file modified more recently may change again within the resolution of its timestamps."""


class FileHashes:
    """SHA-256 of files; a file is read again only if its size, times or inode changed.

    Args:
        path: JSON file that stores the cache; losing it costs time only.
        saves: whether new hashes are written to it.
    """

    def __init__(self, path: Path, *, saves: bool = True) -> None:
        self.path = path
        self.saves = saves

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 hex digest of a file."""
        file = file.resolve()
        state = file.stat()
        seen: list[int | str] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        known = self._known.get(str(file), [])
        if known[:-1] == seen:
            return str(known[-1])
        digest = sha256_file(file)
        if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS:
            self._known[str(file)] = [*seen, digest]
            if self.saves:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self._known)
        return digest

    @cached_property
    def _known(self) -> dict[str, list[int | str]]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        return known if isinstance(known, dict) else {}
