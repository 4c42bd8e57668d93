"""The format of a data folder, for everyone who writes or reads one."""

from typing import Any

import numpy as np

FORMAT_VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SPLITS = ("train", "held_out")
FOLDERS = {"train": "tokens", "held_out": "held_out"}
