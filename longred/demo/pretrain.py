"""Train the tiny base model: `python -m longred.demo.pretrain --output DIR`.

Training has four phases (see `rows`): short rows of exercises until copying works ("copying"), the
same with weight on the choice among several values ("lookup"), the same with wordings ("recall"),
and library text mixed with all exercises ("mixture"). A restart continues from the last checkpoint.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longred.demo.corpus import training_documents
from longred.demo.rows import RowMaker
from longred.demo.skills import OPEN_SHARE
from longred.demo.tokenizer import load_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

NEXT_PHASE = {"copying": "lookup", "lookup": "recall", "recall": "mixture"}
# Initial value of the smoothed loss in every phase: about ln(vocabulary size).
START_LOSS = 7.0
LOG_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Model shape and training schedule; the defaults are those of the shipped model."""

    seed: int = 0
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 6
    num_heads: int = 4
    num_key_value_heads: int = 2
    window: int = 256
    practice_rows: int = 64
    practice_length: int = 128
    # A practice phase ends when its smoothed loss falls below this value, or at its step limit.
    copying_loss: float = 0.25
    lookup_loss: float = 0.25
    recall_loss: float = 0.25
    max_copying_steps: int = 900
    max_lookup_steps: int = 450
    max_recall_steps: int = 900
    mixed_rows: int = 32
    mixed_steps: int = 2400
    # Open wordings are used in the last steps only.
    open_wording_steps: int = 766
    # Full-weight text from the start unlearns the exercises, so its weight grows over these steps.
    text_ramp_steps: int = 400
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    final_fraction: float = 0.02
    weight_decay: float = 0.05


@dataclass
class Progress:
    """Training state; all that a checkpoint saves besides tensors."""

    step: int = 0
    phase: str = "copying"
    phase_start: int = 0
    smoothed_loss: float = START_LOSS
    num_tokens: int = 0
    train_seconds: float = 0.0

    @property
    def phase_steps(self) -> int:
        """Steps since the phase started."""
        return self.step - self.phase_start


def build_model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a float32 Llama model with seeded initial weights."""
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_key_value_heads,
            max_position_embeddings=settings.window,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms.

    Both have the same learning rate, because Muon's updates are scaled to AdamW's size.
    """

    def __init__(self, model: LlamaForCausalLM, settings: PretrainSettings) -> None:
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inside = parameter.ndim == 2 and "embed" not in name
            (matrices if inside else others).append(parameter)
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                matrices,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(
                others, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
            ),
        }

    def step(self, learning_rate: float) -> None:
        """Apply one update at `learning_rate` and clear the gradients."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as tensors named `optimizer.part.parameter.quantity`."""
        return {
            f"optimizer.{name}.{index}.{quantity}": value.contiguous()
            for name, part in self.parts.items()
            for index, state in part.state_dict()["state"].items()
            for quantity, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state from the result of `tensors`; ignores other tensors."""
        for name, part in self.parts.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{name}."):
                    index, quantity = key.split(".")[2:]
                    state.setdefault(int(index), {})[quantity] = value
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": state, "param_groups": groups})


def learning_rate(settings: PretrainSettings, progress: Progress) -> float:
    """Return the learning rate of the next step.

    It warms up linearly, is constant in the practice phases, and falls linearly to `final_fraction`
    in the mixture.
    """
    warm = min(1.0, (progress.step + 1) / settings.warmup_steps)
    if progress.phase != "mixture":
        return settings.learning_rate * warm
    done = progress.phase_steps / settings.mixed_steps
    return settings.learning_rate * warm * (1.0 - (1.0 - settings.final_fraction) * done)


def training_loss(model: torch.nn.Module, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean next-token loss (nats), and that of each row (inputs are [B, T])."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    weighted = losses * weights[:, 1:]
    row_loss = weighted.detach().sum(1) / weights[:, 1:].sum(1).clamp_min(1e-6)
    return weighted.sum() / weights.sum(), row_loss


class Pretraining:
    """One run of the base training; continues from the checkpoint in `work`, if there is one."""

    def __init__(
        self,
        settings: PretrainSettings,
        tokenizer: PreTrainedTokenizerFast,
        texts: list[str],
        *,
        work: Path,
        device: str = "cpu",
    ) -> None:
        self.settings, self.tokenizer, self.work, self.device = settings, tokenizer, work, device
        self.rows = RowMaker(tokenizer, texts, seed=settings.seed)
        self.model = build_model(settings, tokenizer)
        torch.nn.Module.to(self.model, device)
        self.optimizers = Optimizers(self.model, settings)
        self.progress = Progress()
        self._resume()

    @property
    def finished(self) -> bool:
        """Whether the last step of the mixture is done."""
        progress = self.progress
        return progress.phase == "mixture" and progress.phase_steps >= self.settings.mixed_steps

    def step(self) -> dict[str, float]:
        """Do one update; return the mean loss of each kind of row, in nats per weighted token."""
        started = time.monotonic()
        settings, progress = self.settings, self.progress
        if progress.phase == "mixture":
            ramp = (progress.phase_steps + 1) / settings.text_ramp_steps
            is_open = progress.phase_steps >= settings.mixed_steps - settings.open_wording_steps
            tokens, weights, kinds = self.rows.mixed_rows(
                progress.step,
                num_rows=settings.mixed_rows,
                length=settings.window,
                text_scale=min(1.0, ramp),
                open_share=OPEN_SHARE if is_open else 0.0,
            )
        else:
            tokens, weights, kinds = self.rows.practice_rows(
                progress.step,
                num_rows=settings.practice_rows,
                length=settings.practice_length,
                phase=progress.phase,
            )
        loss, row_loss = training_loss(
            self.model,
            torch.from_numpy(tokens).to(self.device),
            torch.from_numpy(weights).to(self.device),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(learning_rate(settings, progress))
        progress.step += 1
        progress.num_tokens += tokens.size
        self._follow_phase(loss.item())
        progress.train_seconds += time.monotonic() - started
        by_kind: dict[str, list[float]] = defaultdict(list)
        for kind, kind_loss in zip(kinds, row_loss.tolist(), strict=True):
            by_kind[kind].append(kind_loss)
        return {kind: fmean(losses) for kind, losses in by_kind.items()}

    def _follow_phase(self, loss: float) -> None:
        progress, settings = self.progress, self.settings
        if not np.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {progress.step}")
        progress.smoothed_loss = 0.95 * progress.smoothed_loss + 0.05 * loss
        if progress.phase == "mixture":
            return
        wanted_loss, max_steps = {
            "copying": (settings.copying_loss, settings.max_copying_steps),
            "lookup": (settings.lookup_loss, settings.max_lookup_steps),
            "recall": (settings.recall_loss, settings.max_recall_steps),
        }[progress.phase]
        if progress.smoothed_loss < wanted_loss or progress.phase_steps >= max_steps:
            progress.phase = NEXT_PHASE[progress.phase]
            progress.phase_start = progress.step
            progress.smoothed_loss = START_LOSS

    def save(self) -> None:
        """Write the checkpoint atomically: tensors, with progress and settings as JSON metadata."""
        tensors = {f"model.{name}": value.data for name, value in self.model.named_parameters()}
        tensors |= self.optimizers.tensors()
        temporary = self.work / "checkpoint.tmp"
        save_file(
            {name: value.cpu().contiguous() for name, value in tensors.items()},
            temporary,
            metadata={
                "progress": json.dumps(asdict(self.progress)),
                "settings": json.dumps(asdict(self.settings)),
            },
        )
        os.replace(temporary, self.work / "checkpoint.safetensors")

    def _resume(self) -> None:
        path = self.work / "checkpoint.safetensors"
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        if json.loads(metadata["settings"]) != asdict(self.settings):
            raise ValueError(f"{path} was written with other settings: {metadata['settings']}")
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.optimizers.load_tensors(tensors)
        self.progress = Progress(**json.loads(metadata["progress"]))
        logger.info("continuing from step %d", self.progress.step)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face model folder; replaces an existing one by renaming."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def run(training: Pretraining, output: Path, *, save_seconds: float) -> None:
    """Train to the end; save a checkpoint and the model about every `save_seconds`."""
    saved_at = time.monotonic()
    losses: dict[str, list[float]] = defaultdict(list)
    phase = training.progress.phase
    while not training.finished:
        for kind, loss in training.step().items():
            losses[kind].append(loss)
        progress = training.progress
        if progress.step % LOG_STEPS == 0 or training.finished:
            logger.info(
                "step %d tokens %.2fM loss %.3f lr %.2e %.0f tok/s | %s",
                progress.step,
                progress.num_tokens / 1e6,
                progress.smoothed_loss,
                learning_rate(training.settings, progress),
                progress.num_tokens / max(progress.train_seconds, 1e-9),
                " ".join(f"{kind} {fmean(values):.3f}" for kind, values in sorted(losses.items())),
            )
            losses.clear()
        phase_over, phase = phase != progress.phase, progress.phase
        if phase_over:
            logger.info("step %d: %s begins", progress.step, phase)
        if phase_over or training.finished or time.monotonic() - saved_at > save_seconds:
            training.save()
            export(training.model, training.tokenizer, output)
            saved_at = time.monotonic()


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="longred.demo.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="output folder of the model")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (default: OUTPUT.work)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed-steps", type=int, default=PretrainSettings.mixed_steps)
    parser.add_argument("--save-seconds", type=float, default=240.0)
    options = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", force=True
    )
    work = options.work or options.output.with_name(options.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    settings = PretrainSettings(seed=options.seed, mixed_steps=options.mixed_steps)
    texts = [text for _, text in training_documents()]
    if not (work / "tokenizer").exists():
        train_tokenizer(texts, settings.window).save_pretrained(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    training = Pretraining(settings, tokenizer, texts, work=work, device=options.device)
    run(training, options.output, save_seconds=options.save_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
