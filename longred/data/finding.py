"""Finds the readable files of a path, and says which files there no reader takes."""

import glob
import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from longred.errors import ConfigError, PreflightError, where_paths_start

TEXT_SUFFIXES = (".txt", ".md", ".py")
COMPRESSED_SUFFIXES = (".gz", ".zst")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
NO_SUFFIX, NOT_REGULAR = "without a suffix", "not regular (pipe, device or link to a folder)"
SHOWN_NAMES, SHOWN_SUFFIXES = 3, 8


@dataclass(frozen=True, slots=True)
class Files:
    """Files below a root.

    Attributes:
        filesystem: the fsspec file system.
        root: the folder that paths are relative to.
        sizes: POSIX path → bytes, in a random-looking order that depends on the paths alone, so
            that the first files are a fair sample.
        ignored: files that no reader takes: POSIX path → suffix, NO_SUFFIX or NOT_REGULAR.
    """

    filesystem: Any
    root: str
    sizes: dict[str, int]
    ignored: dict[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine."""
        return "file" in self.filesystem.protocol

    def full(self, path: str) -> str:
        """Return the path in the file system."""
        return f"{self.root}/{path}" if self.root else path

    def open(self, path: str) -> BinaryIO:
        """Open one file for reading."""
        return self.filesystem.open(self.full(path), "rb")  # type: ignore[no-any-return]


def suffix_of(path: str) -> str:
    """Return which of SUFFIXES a path ends with, whatever its case; empty if none."""
    name = path.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def find_files(pattern: str, key: str) -> Files:
    """Return the readable files of a file, folder or glob.

    Only regular files, and links to them, are readable. Below a folder, hidden files and folders
    (names that begin with a dot) are not looked at.

    Args:
        pattern: path or URL of a file or folder, or a glob (`**` crosses folders).
        key: dotted key that holds the pattern, for messages.

    Raises:
        ConfigError: the path does not exist or has no file with a known suffix.
        PreflightError: the URL cannot be reached.
    """
    known = ", ".join(SUFFIXES)
    try:
        filesystem, path, root = locate(pattern, key)
        if glob.has_magic(path):
            found = filesystem.glob(path, detail=True)
        elif filesystem.isfile(path):
            found = {path: filesystem.info(path)}
            if not suffix_of(path):
                raise ConfigError(f"{key}: {path} has none of the suffixes {known}")
        elif filesystem.isdir(path):
            found = filesystem.find(path, detail=True)
        else:
            if filesystem.exists(path):
                raise ConfigError(f"{key}: {path} is not a regular file")
            raise ConfigError(f"{key}: {path} does not exist{where_paths_start(pattern)}")
    except OSError as error:
        what = "listed" if isinstance(error, PermissionError) else "reached"
        raise PreflightError(f"{key}: {pattern} cannot be {what} ({error})") from error
    prefix = f"{root}/" if root else ""
    sizes: dict[str, int] = {}
    ignored: dict[str, str] = {}
    shows_hidden = "/." in path.removeprefix(root)
    for full, info in found.items():
        name = full.removeprefix(prefix)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if info.get("type") == "directory" or (is_hidden and not shows_hidden and full != path):
            continue
        if not _is_regular(full, info, filesystem):
            ignored[name] = NOT_REGULAR
        elif suffix_of(name):
            sizes[name] = int(info.get("size") or 0)
        else:
            ignored[name] = PurePosixPath(name.lower()).suffix or NO_SUFFIX
    if not sizes:
        found_instead = f"; found {describe_ignored(ignored)}" if ignored else ""
        raise ConfigError(f"{key}: no files with the suffixes {known} in {path}{found_instead}")
    names = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    return Files(filesystem, root, {name: sizes[name] for name in names}, ignored)


def folder_files(folder: str, also: Sequence[str] = ()) -> Files:
    """Return all regular files of a local folder, whatever their suffix, sorted by path.

    Args:
        folder: its path.
        also: names of hidden files to include; others, and hidden folders, are left out.
    """
    filesystem, _, root = locate(folder, "data.sources")
    sizes: dict[str, int] = {}
    for full, info in sorted(filesystem.find(root, detail=True).items()):
        name = full.removeprefix(f"{root}/")
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if (not is_hidden or name in also) and _is_regular(full, info, filesystem):
            sizes[name] = int(info.get("size") or 0)
    return Files(filesystem, root, sizes)


def _is_regular(path: str, info: Mapping[str, Any], filesystem: Any) -> bool:
    """Return whether a path is a file that can be read to its end.

    A dangling link counts as one, so that the reader rejects it with a reason.
    """
    if info.get("type") == "file" or "file" not in filesystem.protocol:
        return True
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def count_ignored(ignored: Mapping[str, str]) -> dict[str, int]:
    """Return the number of ignored files by suffix, the most frequent first."""
    counts = Counter(ignored.values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_ignored(ignored: Mapping[str, str]) -> str:
    """Return counts and first names: `3 files: 2 .html, 1 without a suffix (a.html, b.html, c)`."""
    return ignored_text(count_ignored(ignored), sorted(ignored)[:SHOWN_NAMES])


def ignored_text(counts: Mapping[str, int], names: Sequence[str]) -> str:
    """Return the text of `describe_ignored` from counts and first names."""
    total = sum(counts.values())
    shown = dict(itertools.islice(counts.items(), SHOWN_SUFFIXES))
    parts = [f"{count:,} {suffix}" for suffix, count in shown.items()]
    if len(counts) > len(shown):
        parts.append(f"{total - sum(shown.values()):,} of other kinds")
    more = ", …" if total > len(names) else ""
    plural = "" if total == 1 else "s"
    return f"{total:,} file{plural}: {', '.join(parts)} ({', '.join(names)}{more})"


def locate(pattern: str, key: str) -> tuple[Any, str, str]:
    """Return the file system of a pattern, its path there, and the root of its files.

    Raises:
        ConfigError: the URL is wrong.
        PreflightError: it needs a package that is not installed.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
    except ImportError as error:
        scheme = pattern.partition("://")[0]
        raise PreflightError(f"{key}: reading {scheme}:// needs a package ({error})") from error
    except ValueError as error:
        raise ConfigError(
            f"{key}: {pattern} cannot be opened ({error}); give a path, or an address that fsspec "
            "reads, such as s3://bucket/folder"
        ) from error
    root = path = str(path)
    if glob.has_magic(path):
        folders = path.split("/")[:-1]
        root = "/".join(itertools.takewhile(lambda name: not glob.has_magic(name), folders))
    elif filesystem.isfile(path):
        root = path.rpartition("/")[0]
    return filesystem, path, root
