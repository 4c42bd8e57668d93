"""Drift of a model over a range of RoPE rescalings; no weights are copied or saved."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from longred.errors import ConfigError
from longred.models.architectures import main_rope
from longred.models.extension import extend_config
from longred.profiling.drift import profile_drift
from longred.progress import Progress


class Setting(NamedTuple):
    """One rescaling to try.

    Attributes:
        method: a key of `longred.method.rope.ROPE_METHODS`.
        value: rope_theta for `abf`, the factor target / original window for all others.
    """

    method: str
    value: float


class SweepPoint(NamedTuple):
    """The drift under one setting.

    Attributes:
        method: rescaling method.
        value: rope_theta for `abf`, the factor for all others.
        attention_kl: mean KL per query over all layers, nats.
        hidden_similarity: mean cosine over all layers.
        last_similarity: mean cosine of the last hidden state.
        attention_kl_per_layer: decoder layers 0 to N - 1.
        hidden_similarity_per_layer: hidden states 1 to N.
    """

    method: str
    value: float
    attention_kl: float
    hidden_similarity: float
    last_similarity: float
    attention_kl_per_layer: list[float]
    hidden_similarity_per_layer: list[float]


def sweep_drift(
    teacher: PreTrainedModel,
    settings: Sequence[Setting],
    input_ids_NT: Tensor,
    *,
    batch_rows: int,
    on_progress: Progress | None = None,
) -> list[SweepPoint]:
    """Measure the drift of the model under every rescaling of its RoPE.

    Args:
        teacher: the original model, with attention `longred`.
        settings: the rescalings.
        input_ids_NT: the text, rows of one document each.
        batch_rows: number of rows run at once.
        on_progress: called after every setting.

    Raises:
        ConfigError: a setting is impossible; all are checked before the first is measured.
    """
    configs = [_rescaled_config(teacher.config, setting) for setting in settings]
    points = []
    for number, (setting, config) in enumerate(zip(settings, configs, strict=True), start=1):
        student = with_rope(teacher, config)
        drift = profile_drift(teacher, student, input_ids_NT, batch_rows=batch_rows)
        similarity = drift.hidden_similarity
        points.append(
            SweepPoint(
                *setting,
                attention_kl=sum(drift.attention_kl) / drift.num_layers,
                hidden_similarity=sum(similarity) / drift.num_layers,
                last_similarity=similarity[-1],
                attention_kl_per_layer=drift.attention_kl,
                hidden_similarity_per_layer=similarity,
            )
        )
        if on_progress is not None:
            on_progress(number, len(settings), f"{setting.method} {setting.value:g}")
    return points


def _rescaled_config(config: PreTrainedConfig, setting: Setting) -> PreTrainedConfig:
    window = int(config.max_position_embeddings)
    if setting.method == "abf":
        # The frequencies do not depend on the window.
        return extend_config(
            config, method="abf", target_window=2 * window, rope_theta=setting.value
        )
    target_window = round(window * setting.value)
    if target_window <= window:
        raise ConfigError(
            f"{setting.method}: a factor must be above 1, got {setting.value:g}; it is the target "
            "window divided by the original one"
        )
    return extend_config(config, method=setting.method, target_window=target_window)


def with_rope(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a copy of the model that shares its parameters and has the RoPE of `config`."""
    shared: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    student = copy.deepcopy(model, shared)
    base: Any = student.base_model
    own_config = copy.deepcopy(config)
    own_config._attn_implementation = model.config._attn_implementation
    base.rotary_emb = type(base.rotary_emb)(config=own_config).to(model.device)
    student.config = base.config = own_config
    return student


def original_theta(model: PreTrainedModel) -> float:
    """Return the rope_theta of the unscaled model."""
    return float(main_rope(model.config)["rope_theta"])
