"""Which cuDNN this process has loaded, and whether it is the one that torch was built with."""

from collections.abc import Iterator
from pathlib import Path

import torch

OWN, MIXED, FOREIGN = "torch", "mixed", "system"


def loaded_cudnn() -> dict[str, str]:
    """Return the cuDNN that this process has loaded; empty where torch has none.

    Returns:
        `cudnn_version` as in 9.19.0; `cudnn_path`, the folders of its libraries; `cudnn_origin`:
        `torch` for the one that came with torch, `system` for another that hides it, `mixed` where
        libraries of both are loaded. More libraries are loaded with the first kernel.
    """
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    maps = Path("/proc/self/maps")
    if version is None:
        return {}
    text = maps.read_text(encoding="utf-8") if maps.exists() else ""
    return {"cudnn_version": readable_version(version), **cudnn_folders(text)}


def cudnn_folders(maps: str) -> dict[str, str]:
    """Return path and origin of the cuDNN libraries in the text of a /proc/PID/maps."""
    folders = sorted({str(path.parent) for path in _libraries(maps)})
    is_own = [_is_torchs(folder) for folder in folders]
    origin = OWN if all(is_own) else MIXED if any(is_own) else FOREIGN
    return {"cudnn_path": ", ".join(folders) or "inside torch", "cudnn_origin": origin}


def _libraries(maps: str) -> Iterator[Path]:
    for line in maps.splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith("libcudnn"):
            yield path


def _is_torchs(folder: str) -> bool:
    """Return whether a folder is torch's own, or of the package that torch's wheel requires."""
    own = Path(torch.__file__).resolve().parent / "lib"
    return folder == str(own) or folder.endswith("/nvidia/cudnn/lib")


def readable_version(version: int) -> str:
    """Return a cuDNN version number in the usual form: 91900 is 9.19.0, 8902 is 8.9.2."""
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def say_cudnn(found: dict[str, str]) -> str:
    """Return the version and folders of `loaded_cudnn` as a phrase; empty for an empty one."""
    if not found:
        return ""
    hides = "" if found["cudnn_origin"] == OWN else ", not the one that came with torch"
    return f"cuDNN {found['cudnn_version']}, {found['cudnn_path']}{hides}"
