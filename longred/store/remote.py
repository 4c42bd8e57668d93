"""Finished artifacts on object storage: sent when they are made, fetched instead of made again."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longred.errors import ConfigError, LongredError, MismatchError, PreflightError, StorageError

MANIFEST = "MANIFEST.json"


class Remote:
    """A folder of artifacts behind an fsspec address, shared by stores on several machines.

    An artifact is there when its manifest is, which is sent last: whatever was cut off before is
    not found and is sent again.

    Args:
        url: `s3://bucket/folder` or another address that fsspec knows. Who may use it is said by
            the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …), never here.

    Raises:
        ConfigError: no filesystem for such addresses is known or installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            # Another machine writes there too: what was listed once may have changed.
            self._files, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"store.remote: {url} cannot be used ({error}); "
                "S3 needs `pip install longred[services]`"
            ) from error

    def has(self, name: str) -> bool:
        """Return whether an artifact is there.

        Raises:
            PreflightError: the place cannot be asked.
        """
        with self._named(PreflightError, "cannot be asked"):
            return bool(self._files.exists(self._place(name, MANIFEST)))

    def send(self, folder: Path, files: Mapping[str, Any]) -> None:
        """Send an artifact that is not there: its files, then its manifest.

        Args:
            folder: the committed artifact.
            files: the manifest's.

        Raises:
            StorageError: it could not be sent; the artifact stays committed here.
        """
        with self._named(StorageError, f"{folder.name} could not be sent"):
            for name in (*files, MANIFEST):
                place = self._place(folder.name, name)
                self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(folder / name), place)

    def fetch(self, name: str, folder: Path) -> None:
        """Copy an artifact that is there into an empty folder, its manifest included.

        Raises:
            StorageError: it could not be fetched.
            MismatchError: its manifest names a file outside the folder.
        """
        with self._named(StorageError, f"{name} could not be fetched"):
            self._files.get_file(self._place(name, MANIFEST), str(folder / MANIFEST))
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for file in manifest["files"]:
                path = (folder / file).resolve()
                if not path.is_relative_to(folder.resolve()):
                    raise MismatchError(f"{self.url}/{name}: its manifest names {file}, outside it")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(self._place(name, file), str(path))

    def _place(self, name: str, file: str) -> str:
        return f"{self._root}/{name}/{file}"

    @contextmanager
    def _named(self, kind: type[LongredError], what: str) -> Iterator[None]:
        """Turn what a filesystem raises, each its own errors, into one that names the setting."""
        try:
            yield
        except LongredError:
            raise
        except Exception as error:
            raise kind(
                f"store.remote: {what} ({self.url}: {type(error).__name__}: {error}); finished "
                "work is intact here, run the same command again when it can be reached"
            ) from error
