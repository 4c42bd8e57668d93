"""What no text of a configuration may hold: secrets, which every record of a run would show.

A run's settings are written to its record, to MLflow and to Prefect. Secrets are read from the
environment by whoever needs them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_REFUSED = {
    "a password in an address; give it in the environment instead (PGPASSWORD, "
    "MLFLOW_TRACKING_PASSWORD, …)": re.compile(r"://[^/?#\s@:]*:[^/?#\s@]+@"),
    "a signature or key in an address; give it in the environment instead": re.compile(
        r"://\S*[?&][\w-]*(token|key|secret|password|signature)=[^&\s]", re.IGNORECASE
    ),
    "a token of the Hugging Face hub; set HF_TOKEN instead": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead": re.compile(
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"
    ),
    "a NUL character; leave it out": re.compile(r"\0"),
}


def refused_texts(values: Any, key: str = "") -> Iterator[str]:
    """Yield a message for every text that holds what it may not; the text itself is not repeated.

    Args:
        values: settings as they were read.
        key: dotted key of them.
    """
    if isinstance(values, str):
        yield from (
            f"{key}: holds {what}" for what, each in _REFUSED.items() if each.search(values)
        )
        return
    if isinstance(values, Mapping):
        items = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list | tuple):
        items = [(str(number), value) for number, value in enumerate(values)]
    else:
        return
    for name, value in items:
        yield from refused_texts(value, f"{key}.{name}" if key else name)
