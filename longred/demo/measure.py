"""Measure the base model at its own window: `python -m longred.demo.measure MODEL`.

Scores needle prompts with unseen keys, values and text, the same in RULER's wording (which base
training never uses), key recall, and bits per byte of held-out modules. `--card` writes the scores
into the model card, from the template `card.md`.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import partial
from importlib import resources
from itertools import takewhile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from longred.demo.corpus import VALIDATION_FRACTION, held_out_documents
from longred.demo.skills import needle_exercise, seeded_random
from longred.demo.tokenizer import load_tokenizer
from longred.evaluation.ruler.haystacks import NOISE
from longred.evaluation.ruler.retrieval import NEEDLE, ONE, ONE_PREFIX
from longred.evaluation.short.key_recall import draw_key, draw_value, key_recall_prompt

# The digits, the space before them and the character that ends the answer.
ANSWER_TOKENS = 9
PROMPT_BATCH_SIZE, TEXT_BATCH_SIZE = 50, 32

Prompt = tuple[str, str]


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
) -> float:
    """Return the share of `(prompt, answer)` pairs whose greedy continuation is the answer.

    A continuation ends at the first character that is not a digit, so a longer number is wrong.
    """
    num_right = 0
    for first in range(0, len(prompts), PROMPT_BATCH_SIZE):
        part = prompts[first : first + PROMPT_BATCH_SIZE]
        inputs = tokenizer(
            [prompt for prompt, _ in part], return_tensors="pt", padding=True, padding_side="left"
        )
        with torch.no_grad():
            output = model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"].to(model.device),
                attention_mask=inputs["attention_mask"].to(model.device),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
            )
        continuations = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
        pairs = zip(continuations, part, strict=True)
        num_right += sum(_leading_digits(text) == answer for text, (_, answer) in pairs)
    return num_right / len(prompts)


def needle_prompts(
    tokenizer: PreTrainedTokenizerFast,
    *,
    count: int,
    window: int,
    passages: Sequence[str],
    num_distractors: int = 0,
) -> list[Prompt]:
    """Draw needles in practised wordings with held-out keys, for windows at least 85 % full."""

    def draw(rng: random.Random) -> Prompt:
        exercise = needle_exercise(
            rng,
            length=window,
            passages=passages,
            held_out=True,
            num_distractors=num_distractors,
            noise_share=0.0,
        )
        start, end = exercise.answers[0]
        return exercise.text[:start], exercise.text[start + 1 : end - 1]

    return _filled(draw, tokenizer, count=count, window=window, seed="needle")


def ruler_prompts(
    tokenizer: PreTrainedTokenizerFast,
    *,
    count: int,
    window: int,
    passages: Sequence[str] | None = None,
) -> list[Prompt]:
    """Draw prompts like those of niah_single_1 (noise), or niah_single_2 if `passages` are given.

    Keys are two held-out words with a hyphen, values have 7 digits, windows are at least 85 % full.
    """

    def draw(rng: random.Random) -> Prompt:
        key = draw_key(rng, held_out=True)
        while key.count("-") != 1:
            key = draw_key(rng, held_out=True)
        value = draw_value(rng, 7)
        if passages is None:
            sentences, separator = [NOISE] * rng.randint(1, window // 30), "\n"
        else:
            passage = rng.choice(passages)
            start = rng.randrange(max(1, len(passage) - window))
            flat = " ".join(passage[start : start + rng.randint(1, 3 * window)].split())
            sentences, separator = flat.replace(". ", ".\0").split("\0"), " "
        statement = NEEDLE.format(kind="number", key=key, value=value)
        sentences.insert(rng.randint(0, len(sentences)), statement)
        template = f"{ONE} {ONE_PREFIX}"
        return template.format(kind="number", context=separator.join(sentences), query=key), value

    return _filled(draw, tokenizer, count=count, window=window, seed="ruler")


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    window: int,
) -> tuple[float, float]:
    """Return bits per UTF-8 byte and nats per token of texts, cut into windows after BOS."""
    bos, pad = int(tokenizer.bos_token_id), int(tokenizer.pad_token_id)
    blocks: list[list[int]] = []
    num_bytes = 0
    for text in texts:
        num_bytes += len(text.encode())
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        blocks += [
            [bos, *ids[start : start + window - 1]] for start in range(0, len(ids), window - 1)
        ]
    num_tokens = sum(len(block) - 1 for block in blocks)
    blocks.sort(key=len)
    nats = 0.0
    for first in range(0, len(blocks), TEXT_BATCH_SIZE):
        part = blocks[first : first + TEXT_BATCH_SIZE]
        width = len(part[-1])
        padded = [block + [pad] * (width - len(block)) for block in part]
        rows = torch.tensor(padded, device=model.device)
        with torch.no_grad():
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:], reduction="sum", ignore_index=pad
        )
        nats += losses.item()
    return nats / math.log(2) / num_bytes, nats / num_tokens


def measure(folder: Path, *, count: int = 200, device: str = "cpu") -> dict[str, float]:
    """Return all scores of the model in `folder`, from `count` prompts a task."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    torch.nn.Module.to(model, device)
    window = int(model.config.max_position_embeddings)
    texts = [text for _, text in held_out_documents()]
    recall_rng = seeded_random("recall")
    needles = partial(needle_prompts, tokenizer, count=count, passages=texts)
    tasks = {
        "needle": needles(window=window),
        "needle_half_window": needles(window=window // 2),
        "needle_of_four": needles(window=window, num_distractors=3),
        "ruler_niah_single_1": ruler_prompts(tokenizer, count=count, window=window),
        "ruler_niah_single_2": ruler_prompts(tokenizer, count=count, window=window, passages=texts),
        "key_recall": [key_recall_prompt(recall_rng) for _ in range(count)],
    }
    scores = {name: exact_match(model, tokenizer, prompts) for name, prompts in tasks.items()}
    bits, nats = bits_per_byte(model, tokenizer, texts, window=window)
    return scores | {
        "bits_per_byte": bits,
        "nats_per_token": nats,
        "num_prompts": count,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_held_out_modules": len(texts),
    }


def write_card(folder: Path, scores: dict[str, float], *, date: date, training: str) -> None:
    """Write the model card, `folder`/README.md.

    Args:
        folder: the model folder.
        scores: the result of `measure`.
        date: day of the measurement.
        training: tokens, time and hardware, such as "36 M tokens in 50 minutes on 2 cores".
    """
    template = resources.files("longred.demo").joinpath("card.md").read_text(encoding="utf-8")
    card = template.format(
        **scores,
        parameters=scores["num_parameters"] / 1e6,
        count=int(scores["num_prompts"]),
        modules=int(scores["num_held_out_modules"]),
        date=date.isoformat(),
        fraction=VALIDATION_FRACTION,
        training=training,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> int:
    """Run the command line, print the scores as JSON and return the exit code."""
    parser = argparse.ArgumentParser(prog="longred.demo.measure", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=200, help="prompts per task")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--card",
        metavar="TRAINING",
        help="write MODEL/README.md; TRAINING names tokens, time and hardware",
    )
    options = parser.parse_args()
    scores = measure(options.model, count=options.count, device=options.device)
    print(json.dumps(scores, indent=2))
    if options.card:
        today = datetime.now(UTC).date()
        write_card(options.model, scores, date=today, training=options.card)
    return 0


def _filled(
    draw: Callable[[random.Random], Prompt],
    tokenizer: PreTrainedTokenizerFast,
    *,
    count: int,
    window: int,
    seed: str,
) -> list[Prompt]:
    """Draw until `count` prompts with their answers take 85 to 100 % of the window."""
    rng = seeded_random(f"{seed}-{window}")
    prompts: list[Prompt] = []
    while len(prompts) < count:
        prompt, answer = draw(rng)
        size = len(tokenizer.backend_tokenizer.encode(prompt).ids) + ANSWER_TOKENS
        if 0.85 * window <= size <= window:
            prompts.append((prompt, answer))
    return prompts


def _leading_digits(text: str) -> str:
    return "".join(takewhile(str.isdigit, text.lstrip(" ")))


if __name__ == "__main__":
    sys.exit(main())
