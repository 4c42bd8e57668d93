"""The model under evaluation, loaded when the first unit that is not finished needs it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from longred.attention.function import ATTENTION_NAME
from longred.config import EvaluationConfig
from longred.evaluation.chat import is_chat
from longred.models.load import choose_device, load_config, load_model, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which model is evaluated, on which questions, and against what.

    Attributes:
        config: what is asked.
        name: the model's name in tables.
        model: its folder.
        checkpoint: its identity; no unit of another checkpoint is ever taken for its own.
        original: folder of the original model, that similarity is measured to.
        original_digest: its identity.
        samples: folder of the frozen samples.
        data: folder of a data artifact.
    """

    config: EvaluationConfig
    name: str
    model: Path
    checkpoint: str
    original: Path
    original_digest: str
    samples: Path
    data: Path


class Subject:
    """The model of a request, its original, and how lm-eval sees it.

    Args:
        request: which model.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.config = request, request.config
        self.device = choose_device(self.config.device)

    def load(self, folder: Path, attention: str = ATTENTION_NAME) -> Any:
        """Return a model on the device of the evaluation."""
        return load_model(
            folder,
            dtype=getattr(torch, self.config.dtype),
            device=self.device,
            attention=attention,
            original=self.request.original,
            backend=self.config.attention_backend,
        )

    def release(self) -> None:
        """Let go of the model, so that others have room."""
        for name in ("examinee", "reference", "model"):
            self.__dict__.pop(name, None)

    @cached_property
    def model(self) -> Any:
        """The model, with the attention that takes padding."""
        return self.load(self.request.model, "sdpa")

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(self.request.model)

    @cached_property
    def examinee(self) -> Any:
        """The model as lm-eval sees it, answering by the backend of the configuration."""
        if self.config.backend == "hf":
            return self.reference
        from longred.evaluation.vllm import VllmEngine, by_engine

        folder = self.request.model
        engine = VllmEngine(
            folder,
            max_tokens=max(self.config.original_window, self.config.target_window),
            window=int(load_config(folder).max_position_embeddings),
            dtype=self.config.dtype,
            memory_fraction=self.config.vllm_memory_fraction,
        )
        return by_engine(self.reference, engine)

    @cached_property
    def reference(self) -> Any:
        """The model as lm-eval sees it, answering by transformers."""
        from longred.evaluation.examinee import examinee

        return examinee(
            self.model,
            self.tokenizer,
            max_tokens=max(self.config.original_window, self.config.target_window),
            batch_size=self.config.batch_size,
            is_chat=is_chat(self.config.chat_template, self.request.original),
        )
