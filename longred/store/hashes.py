"""Remembers the sha256 of large files that have not changed since they were last read."""

import json
import time
from pathlib import Path

from longred.store.artifacts import sha256_file, write_json

# A file changed within this time may change again without its times telling.
SETTLED_SECONDS = 2.0


class FileHashes:
    """The sha256 of files, read once as long as size, times and inode stay as they are.

    Args:
        path: where they are kept between processes; losing it costs time only.
        saves: whether new ones are kept there.
    """

    def __init__(self, path: Path, *, saves: bool = True) -> None:
        self.path = path
        self.saves = saves
        self._known: dict[str, list[int | str]] | None = None

    def sha256(self, file: Path) -> str:
        """Return the sha256 hex digest of a file's bytes."""
        file = file.resolve()
        state = file.stat()
        seen: list[int | str] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        known = self._load()
        if known.get(str(file), [])[:-1] == seen:
            return str(known[str(file)][-1])
        digest = sha256_file(file)
        if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS:
            known[str(file)] = [*seen, digest]
            if self.saves:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, known)
        return digest

    def _load(self) -> dict[str, list[int | str]]:
        if self._known is None:
            try:
                known = json.loads(self.path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                known = {}
            self._known = known if isinstance(known, dict) else {}
        return self._known
