"""The values of a run: a section of each stage, and what several of them share."""

from typing import Annotated, Any, Self

from pydantic import Field

from longred.config.data import DataConfig
from longred.config.evaluation import EvaluationConfig
from longred.config.model import AttentionConfig, ExtensionConfig, ModelConfig, WindowConfig
from longred.config.outputs import ReportConfig, StoreConfig, TrackingConfig
from longred.config.profiling import ProfilingConfig, SelectionConfig
from longred.config.section import Count, Section
from longred.config.training import TrainingConfig


class RunValues(Section):
    """All of a run's sections; each is valid by itself, and `checks` looks across them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    original_window: Count
    target_window: Count
    model: ModelConfig = ModelConfig()
    attention: AttentionConfig = AttentionConfig()
    data: DataConfig
    extension: ExtensionConfig = ExtensionConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    tracking: TrackingConfig = TrackingConfig()

    def windows(self) -> list[Self]:
        """Return this run at each window on the way to its target, smallest first."""
        return [self._at(window) for window in self.extension.windows]

    def _at(self, window: WindowConfig) -> Self:
        reach = {"target_window": window.target_window}
        theta = window.rope_theta or self.extension.rope_theta
        steps = window.num_steps or self.training.num_steps
        changed: dict[str, dict[str, Any]] = {
            "extension": {"rope_theta": theta, "windows": []},
            "data": {},
            "training": {"num_steps": steps, "keep_steps": []},
        }
        sections = {
            name: getattr(self, name).model_copy(update={**reach, **values})
            for name, values in changed.items()
        }
        return self.model_copy(update={**reach, **sections})
