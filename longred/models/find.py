"""Finds the folder of a model without loading it, so that finished stages are recognised fast."""

import difflib
import re
from pathlib import Path

from longred.errors import PreflightError, where_paths_start
from longred.models.folder import check_folder
from longred.models.gguf import gguf_folder, is_gguf
from longred.models.hub import download

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(path: str) -> bool:
    """Return whether a model's path is a name on the hub, and no local file or folder."""
    is_file = path.endswith(".gguf") or Path(path).expanduser().exists()
    return _HUB_NAME.fullmatch(path) is not None and not is_file


def refuse_missing_folder(path: str, key: str) -> None:
    """Refuse a hub name without a commit that looks like a mistyped folder.

    Raises:
        PreflightError: the name's first part is a folder on this machine.
    """
    local = Path(path).expanduser()
    if not local.parent.is_dir():
        return
    siblings = sorted(each.name for each in local.parent.iterdir() if each.is_dir())
    near = difflib.get_close_matches(local.name, siblings, n=1)
    hint = f"did you mean {local.parent / near[0]}? " if near else ""
    raise PreflightError(
        f"{key}: {path} is no folder on this machine{where_paths_start(path)}; {hint}If it is a "
        "name on the hub, give its commit as the revision"
    )


def resolve_model(
    path: str, revision: str | None = None, *, weights: bool = True, key: str = "model.path"
) -> Path:
    """Return the checked local folder of a model.

    Args:
        path: `demo`, a Hugging Face folder, a `.gguf` file, or a name on the hub.
        revision: the commit of a hub name; required for reproducible runs.
        weights: also fetch the weights and check the folder.
        key: what messages name; its revision stands beside it.

    Raises:
        ConfigError: a hub name has no revision, or the kind of model is unsupported.
        PreflightError: the model does not exist, cannot be reached, or its files are damaged.
    """
    local = Path(path).expanduser()
    if path == "demo":
        folder = Path(__file__).parents[1] / "demo" / "model"
    elif is_gguf(local):
        folder = gguf_folder(local.resolve(), weights=weights, key=key)
    elif local.exists():
        folder = local.resolve()
    elif is_hub_name(path):
        if not revision:
            refuse_missing_folder(path, key)
        folder = download(path, revision, weights=weights, key=key)
    else:
        raise PreflightError(
            f"{key}: {path!r} is no folder on this machine{where_paths_start(path)}; give "
            "'demo', the folder of a Hugging Face model, a .gguf file, or a hub name of the form "
            "owner/model"
        )
    if weights:
        check_folder(folder, key)
    return folder
