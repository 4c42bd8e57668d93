"""The hub, asked once whether it is there: its client tries each file again for half a minute."""

import logging
import sys

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0


class Hub:
    """Whether anything may be fetched in this process; what was fetched before is always used.

    Attributes:
        problem: why the hub cannot be reached, if that is so.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._is_known = False

    def probe(self) -> None:
        """Ask the hub once for a sign of life, and go offline if there is none."""
        import httpx
        from huggingface_hub import constants

        if self._is_known or constants.HF_HUB_OFFLINE:
            return
        self._is_known = True
        try:
            httpx.head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        except httpx.HTTPError as error:
            self.give_up(f"{constants.ENDPOINT}: {error}")

    def give_up(self, reason: str) -> None:
        """Go offline: each request would be retried for half a minute otherwise."""
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            self.problem = reason
            logger.warning("the hub cannot be reached (%s); only local data are used", reason)
        self._is_known = True
        constants.HF_HUB_OFFLINE = True
        # It copies the setting when it is imported.
        if loaded := sys.modules.get("datasets.config"):
            vars(loaded)["HF_HUB_OFFLINE"] = True


HUB = Hub()
