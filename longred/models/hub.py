"""Models from the Hugging Face hub, with one check whether the hub answers.

The hub's client retries each file for half a minute, so a process that finds no hub goes offline.
"""

import importlib
import importlib.util
import logging
import re
import sys
from pathlib import Path

from longred.errors import ConfigError, PreflightError

logger = logging.getLogger(__name__)


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what the HTTP clients of the hub's libraries raise.

    datasets uses httpx; huggingface_hub uses httpx2 since version 2.
    """
    found = (importlib.util.find_spec(name) for name in ("httpx", "httpx2"))
    errors: list[type[Exception]] = [
        importlib.import_module(spec.name).HTTPError for spec in found if spec
    ]
    return tuple(errors)


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what a download from the hub raises."""
    from huggingface_hub.errors import HFValidationError

    return (OSError, HFValidationError, *transport_errors())


PROBE_SECONDS = 5.0


class Hub:
    """Whether this process may download; files in the local cache are always used.

    Attributes:
        problem: why the hub cannot be reached, or None.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._is_known = False

    def probe(self) -> None:
        """Send one request to the hub and go offline if it fails."""
        from huggingface_hub import constants, get_session

        if self._is_known or constants.HF_HUB_OFFLINE:
            return
        self._is_known = True
        try:
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        except transport_errors() as error:
            self.give_up(f"{constants.ENDPOINT}: {error}")

    def give_up(self, reason: str) -> None:
        """Go offline."""
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            self.problem = reason
            logger.warning("the hub cannot be reached (%s); only local data are used", reason)
        self._is_known = True
        constants.HF_HUB_OFFLINE = True
        # datasets copies the setting when it is imported.
        if loaded := sys.modules.get("datasets.config"):
            vars(loaded)["HF_HUB_OFFLINE"] = True


HUB = Hub()


def download(
    name: str, revision: str | None, *, weights: bool = True, key: str = "model.path"
) -> Path:
    """Return the local copy of a model on the hub; download missing files.

    Args:
        name: on the hub.
        revision: its commit.
        weights: also fetch the weights.
        key: the setting that named it, in messages.

    Raises:
        ConfigError: no revision is given.
        PreflightError: the hub cannot be reached, or refuses the model.
    """
    from huggingface_hub import snapshot_download

    # Imports transformers, which processes that only prepare text do without.
    from longred.models.folder import COMPANIONS, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    commit_key = f"{key.removesuffix('.path')}{'.' if key.endswith('.path') else '_'}revision"
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigError(
            f"{key}: {name} is no folder here, so it is looked for on the hub, and there "
            f"{commit_key} must be the full commit hash (40 hexadecimal digits), since a branch "
            f"can move; got {revision or 'none'}"
        )
    # Some repositories also hold the weights in the maker's own layout.
    files = [WEIGHTS_NAME, "model-*.safetensors", WEIGHTS_INDEX_NAME] if weights else []
    wanted = ["config.json", *files, *COMPANIONS]
    HUB.probe()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except hub_errors() as error:
        raise PreflightError(
            f"{key}: {name} at {revision} cannot be fetched ({_reason(error)}); connect to "
            f"the hub and accept the model's licence there (then set HF_TOKEN), or set {key} "
            "to a local folder that holds the model"
        ) from error


def _reason(error: Exception) -> str:
    """Return in few words why the hub gave no model."""
    if HUB.problem:
        return HUB.problem
    kind = type(error).__name__
    known = {
        "LocalEntryNotFoundError": "it is not in the local cache, and HF_HUB_OFFLINE is set",
        "GatedRepoError": "its licence has not been accepted with this HF_TOKEN",
        "RepositoryNotFoundError": "the hub has no such model, or shows it only to its owner",
        "RevisionNotFoundError": "the model has no such revision",
    }
    return known.get(kind) or f"{kind}: {error}".strip().partition("\n")[0]


def newest_commit(name: str) -> str:
    """Return the commit that a model's main branch is at.

    Raises:
        PreflightError: the hub cannot be reached, or has no such model.
    """
    from huggingface_hub import HfApi, constants

    HUB.probe()
    try:
        found = HfApi(endpoint=constants.ENDPOINT).model_info(name, timeout=PROBE_SECONDS)
    except hub_errors() as error:
        raise PreflightError(
            f"--revision: the newest commit of {name} cannot be looked up ({_reason(error)}); give "
            "the commit (40 hexadecimal digits), or the folder of the model as --model"
        ) from error
    return str(found.sha)
