"""EvaluatedModel: the model under evaluation, loaded when the first unfinished task needs it."""

import gc
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from longred.attention.reindexed import reindex
from longred.config import EvaluationConfig
from longred.errors import ConfigError
from longred.models.load import choose_device, load_model, load_tokenizer

ROW_TOKENS = 8192
"""Most tokens of the rows of held-out text that are measured at a time."""

_TURNS = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model, the samples it is evaluated on, and the original it is compared with.

    Attributes:
        config: configuration of the evaluation.
        name: the model's name in tables.
        model: its folder.
        checkpoint: its digest; results are reused for the same checkpoint only.
        original: folder of the original model.
        original_digest: its digest.
        samples: folder of the frozen samples.
        data: folder of a data artifact.
        reindexing: a key of `longred.attention.reindexed.SCHEMES` by which the model attends, with
            transformers as the only backend; empty for its own positions.
    """

    config: EvaluationConfig
    name: str
    model: Path
    checkpoint: str
    original: Path
    original_digest: str
    samples: Path
    data: Path
    reindexing: str = ""

    def load(self, folder: Path) -> Any:
        """Load this model or the original."""
        return load_for(self.config, folder, original=self.original)

    def release(self) -> None:
        """Drop the loaded model and give its memory back, also to other processes."""
        for name in ("lm", "transformers_lm", "loaded"):
            self.__dict__.pop(name, None)
        gc.collect()
        torch.cuda.empty_cache()

    @cached_property
    def loaded(self) -> Any:
        """The model in transformers.

        Raises:
            ConfigError: its positions cannot be changed by `reindexing`.
        """
        model = self.load(self.model)
        if self.reindexing:
            windows = self.config.original_window, self.max_tokens
            try:
                reindex(model, self.reindexing, *windows)
            except ValueError as error:
                raise ConfigError(refused_reference(self.reindexing, str(error))) from None
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.model, add_bos=self.config.add_bos_token)

    @cached_property
    def is_chat(self) -> bool:
        """Whether prompts go through the chat template."""
        return is_chat(self.config.chat_template, self.original)

    @cached_property
    def max_tokens(self) -> int:
        """Tokens of the largest window of the run, which may exceed this model's own."""
        return max(self.config.original_window, self.config.target_window)

    @cached_property
    def lm(self) -> Any:
        """The model as an LM of lm-eval, which generates with the configured backend."""
        if self.config.backend == "hf" or self.reindexing:
            return self.transformers_lm
        from longred.evaluation.vllm import VllmEngine

        return self._lm_with(VllmEngine(self.model, self.config, self.max_tokens))

    @cached_property
    def transformers_lm(self) -> Any:
        """The model as an LM of lm-eval, which generates with transformers."""
        return self._lm_with(None)

    def _lm_with(self, engine: Any) -> Any:
        from longred.evaluation.lm import TransformersLM

        return TransformersLM(
            self.loaded,
            self.tokenizer,
            max_tokens=self.max_tokens,
            batch_tokens=self.config.batch_tokens,
            is_chat=self.is_chat,
            engine=engine,
        )

    def rows_of(self, length: int) -> int:
        """Return how many rows of this length are measured at a time."""
        tokens = self.config.batch_tokens
        most = ROW_TOKENS if tokens == "auto" else min(ROW_TOKENS, tokens)
        return max(1, most // length)


def refused_reference(name: str, problem: str) -> str:
    """Return the message about a reference whose positions cannot be changed."""
    return (
        f"evaluation.references: {name} needs a model that rotates halves of whole heads by plain "
        f"RoPE and attends fully in all layers, and this one {problem}; leave {name} out"
    )


def load_for(config: EvaluationConfig, folder: Path, **settings: Any) -> Any:
    """Load a model with the dtype, device and attention backend of an evaluation."""
    return load_model(
        folder,
        dtype=getattr(torch, config.dtype),
        device=choose_device(config.device),
        backend=config.attention_backend,
        **settings,
    )


def is_chat(setting: str, folder: Path) -> bool:
    """Return whether prompts go through a model's chat template.

    Many base models ship a template that they were never trained on. A chat model is recognised by
    how generation ends: its template writes one of its EOS tokens after an assistant's turn.

    Args:
        setting: `auto`, `true` or `false`.
        folder: the original model's folder.

    Raises:
        ConfigError: the setting is `true` and the tokenizer has no template.
    """
    if setting == "false":
        return False
    tokenizer: Any = load_tokenizer(folder)
    if not tokenizer.chat_template:
        if setting == "true":
            raise ConfigError(
                f"evaluation.chat_template: true, and the tokenizer of {folder} has no chat "
                "template; use auto or false"
            )
        return False
    if setting == "true":
        return True
    eos_ids = [tokenizer.eos_token_id]
    path = folder / "generation_config.json"
    if path.is_file():
        listed = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        eos_ids = listed if isinstance(listed, list) else [listed, *eos_ids]
    eos_tokens = [tokenizer.convert_ids_to_tokens(int(i)) for i in eos_ids if i is not None]
    text = str(tokenizer.apply_chat_template(_TURNS, tokenize=False))
    turn_end = text.rpartition("Two.")[2]
    return any(token in turn_end for token in eos_tokens)
