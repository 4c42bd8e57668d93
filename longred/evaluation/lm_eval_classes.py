"""Tasks of lm-eval that are Python classes: local data and the settings that they take.

Such a task ignores the values of its YAML file and loads its data from the hub by itself.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from longred.errors import ConfigError

_NAMES = {"dataset_path": "DATASET_PATH", "dataset_name": "DATASET_NAME"}
"""Values of YAML -> attributes of a task's class."""


class MissingSplitError(ConfigError):
    """The data files lack a split that the code of a task reads."""


class LocalSplits(datasets.DatasetDict):  # type: ignore[misc]
    """Data of local files by split."""

    def __getitem__(self, split: Any) -> Any:
        """Return a split; raises `MissingSplitError` if there is no file of it."""
        if split not in self:
            raise MissingSplitError(
                f"data_files lacks the split {split}, which the code of the task reads; "
                f"give `{split}: /path/to/file.jsonl`"
            )
        return super().__getitem__(split)


def adapted(task: type, settings: Mapping[str, Any], builder: str | None) -> type:
    """Return a task's class with the data that a suite names.

    Args:
        task: the class.
        settings: as `lm_eval_settings.leaf_settings` returns them.
        builder: builder of the `datasets` package for the data files; None if there are none.
    """
    overrides = settings["overrides"]
    changed: dict[str, Any] = {
        attribute: overrides[key] for key, attribute in _NAMES.items() if key in overrides
    }
    for field in ("doc_to_text", "doc_to_target"):
        if len(inspect.signature(getattr(task, field)).parameters) == 2:
            changed[field] = _without_wording(task, field)
    if builder is not None:

        def download(self: Any, *args: Any, **others: Any) -> None:
            loaded = datasets.load_dataset(builder, data_files=dict(settings["data_files"]))
            self.dataset = LocalSplits(loaded)

        changed["download"] = download
        if not settings["num_fewshot"]:
            # The constructor reads all rows that examples could come from, even if there are none.
            changed["fewshot_docs"] = lambda self: None
    return type(task.__name__, (task,), {"__module__": task.__module__, **changed})


def _without_wording(task: type, field: str) -> Callable[..., Any]:
    """Return a method that takes the wording of examples too, which lm-eval passes, as None."""

    def method(self: Any, document: Any, wording: None = None) -> Any:
        return getattr(task, field)(self, document)

    return method


def check_overrides(task: Any, settings: Mapping[str, Any]) -> None:
    """Refuse values that the class of a task did not take.

    Raises:
        ConfigError: an override changed nothing; names it.
    """
    for key, value in settings["overrides"].items():
        if key in _NAMES or getattr(task.config, key, None) == value:
            continue
        raise ConfigError(
            f"{settings['name']}: overrides.{key}: {settings['task']} is a Python class that "
            f"ignores it; it takes {', '.join(_NAMES)} and num_fewshot"
        )


def suffix_of(settings: Mapping[str, Any]) -> str | None:
    """Return the extension of a task's data files; None if it has none."""
    return next((Path(path).suffix for path in settings["data_files"].values()), None)
