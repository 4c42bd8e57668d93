"""Copies of finished artifacts on object storage: sent after a build, fetched instead of built."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longred.errors import ConfigError, LongredError, MismatchError, PreflightError, StorageError

MANIFEST = "MANIFEST.json"
"""List of an artifact's files with their hashes; written last, so a folder with one is finished."""


class Remote:
    """A folder of artifacts behind an fsspec URL, shared by the stores of several machines.

    The manifest is sent last. An artifact without one does not count and is sent again.

    Args:
        url: `s3://bucket/folder` or another URL that fsspec supports. Credentials come from the
            environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …), never from settings.

    Raises:
        ConfigError: no filesystem for this URL is known or installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            # Other machines write there too, so listings are never cached.
            self._files, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"store.remote: {url} cannot be used ({error}); "
                "S3 needs `pip install longred[services]`"
            ) from error

    def has(self, name: str) -> bool:
        """Return whether the remote has an artifact.

        Raises:
            PreflightError: the remote cannot be reached.
        """
        with self._errors(PreflightError, "cannot be reached"):
            return bool(self._files.exists(self._path(name, MANIFEST)))

    def send(self, folder: Path, files: Mapping[str, Any]) -> None:
        """Send the files of a committed artifact, then its manifest.

        Args:
            folder: the artifact.
            files: the files of its manifest.

        Raises:
            StorageError: sending failed; the local artifact stays committed.
        """
        with self._errors(StorageError, f"{folder.name} could not be sent"):
            for name in (*files, MANIFEST):
                path = self._path(folder.name, name)
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(folder / name), path)

    def fetch(self, name: str, folder: Path) -> None:
        """Copy an artifact and its manifest into an empty folder.

        Raises:
            StorageError: fetching failed.
            MismatchError: the manifest names a file outside the folder.
        """
        with self._errors(StorageError, f"{name} could not be fetched"):
            self._files.get_file(self._path(name, MANIFEST), str(folder / MANIFEST))
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for file in manifest["files"]:
                path = (folder / file).resolve()
                if not path.is_relative_to(folder.resolve()):
                    raise MismatchError(f"{self.url}/{name}: its manifest names {file}, outside it")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(self._path(name, file), str(path))

    def _path(self, name: str, file: str) -> str:
        return f"{self._root}/{name}/{file}"

    @contextmanager
    def _errors(self, kind: type[LongredError], problem: str) -> Iterator[None]:
        """Turn any error of the filesystem library into one that names the setting."""
        try:
            yield
        except LongredError:
            raise
        except Exception as error:
            raise kind(
                f"store.remote: {problem} ({self.url}: {type(error).__name__}: {error}); finished "
                "local work is intact, run the same command again when the remote can be reached"
            ) from error
