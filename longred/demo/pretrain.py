"""Train the tiny base model: `python -m longred.demo.pretrain --output DIR`.

Four phases (see `rows`): short rows of exercises alone until copying works ("copying"), the same
with weight on finding the right one of several values ("lookup"), the same with wordings
("recall"), then library text mixed with all exercises ("mixture"). Killed and called again, it
goes on from its last checkpoint.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longred.demo.corpus import training_documents
from longred.demo.rows import RowMaker
from longred.demo.skills import OPEN_SHARE
from longred.demo.tokenizer import load_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

NEXT_PHASE = {"copying": "lookup", "lookup": "recall", "recall": "mixture"}
# About ln(vocabulary size), where the smoothed loss of a phase starts.
START_LOSS = 7.0


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Model shape and training plan; the defaults made the shipped model."""

    seed: int = 0
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 6
    num_heads: int = 4
    num_key_value_heads: int = 2
    window: int = 256
    practice_rows: int = 64
    practice_length: int = 128
    # A practice phase ends when its smoothed loss falls below this, or at its step limit.
    copying_loss: float = 0.25
    lookup_loss: float = 0.25
    recall_loss: float = 0.25
    max_copying_steps: int = 900
    max_lookup_steps: int = 450
    max_recall_steps: int = 900
    mixed_rows: int = 32
    mixed_steps: int = 2400
    # Worded exercises keep to fixed templates until so many steps before the end.
    open_wording_steps: int = 766
    # Text that comes all at once unlearns the exercises: its weight grows over these steps.
    text_ramp_steps: int = 400
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    final_fraction: float = 0.02
    weight_decay: float = 0.05


@dataclass
class Progress:
    """Where training stands; all that a checkpoint keeps beside tensors."""

    step: int = 0
    phase: str = "copying"
    phase_start: int = 0
    smoothed_loss: float = START_LOSS
    num_tokens: int = 0
    train_seconds: float = 0.0


def build_model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised float32 Llama model for `settings`, seeded."""
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
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""

    def __init__(self, model: LlamaForCausalLM, settings: PretrainSettings) -> None:
        """Both run at one learning rate: Muon's updates are scaled to AdamW's size."""
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
        """State as named tensors, `part.parameter.quantity`."""
        return {
            f"{name}.{index}.{quantity}": value.contiguous()
            for name, part in self.parts.items()
            for index, state in part.state_dict()["state"].items()
            for quantity, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, part in self.parts.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, index, quantity = key.split(".")
                if owner == name:
                    state.setdefault(int(index), {})[quantity] = value
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": state, "param_groups": groups})


def learning_rate(settings: PretrainSettings, progress: Progress) -> float:
    """Linear warm-up, constant while practising, then linear to `final_fraction`."""
    warm = min(1.0, (progress.step + 1) / settings.warmup_steps)
    if progress.phase != "mixture":
        return settings.learning_rate * warm
    done = (progress.step - progress.phase_start) / settings.mixed_steps
    return settings.learning_rate * warm * (1.0 - (1.0 - settings.final_fraction) * done)


def training_loss(model: torch.nn.Module, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean next-token loss in nats, and each row's own (tokens, weights: [B, T])."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    weighted = losses * weights[:, 1:]
    row_loss = weighted.detach().sum(1) / weights[:, 1:].sum(1).clamp_min(1e-6)
    return weighted.sum() / weights.sum(), row_loss


class Pretraining:
    """One run of the base training in a work folder."""

    def __init__(
        self,
        settings: PretrainSettings,
        tokenizer: PreTrainedTokenizerFast,
        texts: list[str],
        *,
        work: Path,
        device: str = "cpu",
    ) -> None:
        """Build everything and continue from the checkpoint in `work`, if there is one."""
        self.settings, self.tokenizer, self.work, self.device = settings, tokenizer, work, device
        self.rows = RowMaker(tokenizer, texts, seed=settings.seed)
        self.model = build_model(settings, tokenizer)
        torch.nn.Module.to(self.model, device)
        self.optimizers = Optimizers(self.model, settings)
        self.progress = Progress()
        self._resume()

    @property
    def finished(self) -> bool:
        """True after the last step of the mixture."""
        progress = self.progress
        num_steps = progress.step - progress.phase_start
        return progress.phase == "mixture" and num_steps >= self.settings.mixed_steps

    def step(self) -> dict[str, float]:
        """Do one update; returns the mean loss of each kind of row, in nats per counted token."""
        started = time.monotonic()
        settings, progress = self.settings, self.progress
        if progress.phase == "mixture":
            num_steps = progress.step - progress.phase_start
            ramp = (num_steps + 1) / settings.text_ramp_steps
            is_open = num_steps >= settings.mixed_steps - settings.open_wording_steps
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
        return _means(kinds, row_loss.tolist())

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
        num_steps = progress.step - progress.phase_start
        if progress.smoothed_loss < wanted_loss or num_steps >= max_steps:
            progress.phase = NEXT_PHASE[progress.phase]
            progress.phase_start = progress.step
            progress.smoothed_loss = START_LOSS

    def save(self) -> None:
        """Write the checkpoint: safetensors and JSON, replaced as a whole."""
        tensors = {f"model.{name}": value.data for name, value in self.model.named_parameters()}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizers.tensors().items()}
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
        metadata = _metadata(path)
        if json.loads(metadata["settings"]) != asdict(self.settings):
            raise ValueError(f"{path} belongs to other settings: {metadata['settings']}")
        tensors = load_file(path)
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
        self.optimizers.load_tensors(
            {
                key.removeprefix("optimizer."): value
                for key, value in tensors.items()
                if key.startswith("optimizer.")
            }
        )
        self.progress = Progress(**json.loads(metadata["progress"]))
        logger.info("continuing at step %d", self.progress.step)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a loadable Hugging Face folder, put in place by renaming."""
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
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def run(training: Pretraining, output: Path, *, save_seconds: float, log_steps: int = 20) -> None:
    """Train to the end; checkpoint and export about every `save_seconds`."""
    saved_at = time.monotonic()
    sums: dict[str, list[float]] = {}
    phase = training.progress.phase
    while not training.finished:
        for kind, loss in training.step().items():
            sums.setdefault(kind, []).append(loss)
        progress = training.progress
        if progress.step % log_steps == 0 or training.finished:
            logger.info("step %d %s", progress.step, _log_line(training, sums))
            sums = {}
        phase_over, phase = phase != progress.phase, progress.phase
        if phase_over:
            logger.info("step %d: %s begins", progress.step, phase)
        if phase_over or training.finished or time.monotonic() - saved_at > save_seconds:
            training.save()
            export(training.model, training.tokenizer, output)
            saved_at = time.monotonic()


def main(arguments: Iterable[str] | None = None) -> int:
    """Command line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="longred.demo.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (OUTPUT.work)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed-steps", type=int, default=PretrainSettings.mixed_steps)
    parser.add_argument("--save-seconds", type=float, default=240.0)
    options = parser.parse_args(None if arguments is None else list(arguments))
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


def _means(kinds: list[str], losses: list[float]) -> dict[str, float]:
    result = {}
    for kind in sorted(set(kinds)):
        own = [loss for name, loss in zip(kinds, losses, strict=True) if name == kind]
        result[kind] = sum(own) / len(own)
    return result


def _log_line(training: Pretraining, sums: dict[str, list[float]]) -> str:
    progress = training.progress
    parts = [f"{kind} {sum(values) / len(values):.3f}" for kind, values in sorted(sums.items())]
    rate = progress.num_tokens / max(progress.train_seconds, 1e-9)
    return (
        f"tokens {progress.num_tokens / 1e6:.2f}M loss {progress.smoothed_loss:.3f} "
        f"lr {learning_rate(training.settings, progress):.2e} {rate:.0f} tok/s | " + " ".join(parts)
    )


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


if __name__ == "__main__":
    sys.exit(main())
