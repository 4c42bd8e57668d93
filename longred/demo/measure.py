"""What the base model can do at its own window: `python -m longred.demo.measure MODEL`.

Needle prompts with unseen keys, values and text, the same in RULER's wording (which base training
never uses), key recall, and bits per byte of held-out modules; `--card` writes the model card.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from longred.demo.card import write_card
from longred.demo.corpus import held_out_documents
from longred.demo.skills import needle_exercise, seeded_random
from longred.demo.tokenizer import load_tokenizer
from longred.evaluation.short.key_recall import key_recall_prompt
from longred.evaluation.short.keys import draw_key, draw_value

# The wording of RULER's niah_single tasks (github.com/NVIDIA/RULER, scripts/data/synthetic).
RULER_INTRODUCTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards."
)
RULER_STATEMENT = "One of the special magic numbers for {key} is: {value}."
RULER_QUESTION = (
    "What is the special magic number for {key} mentioned in the provided text? "
    "The special magic number for {key} mentioned in the provided text is"
)
RULER_NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
# Digits, the space before them and the character that ends the answer.
ANSWER_TOKENS = 9

Prompt = tuple[str, str]


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 50,
) -> float:
    """Share of `(prompt, answer)` pairs whose greedy continuation is the answer and then stops.

    The continuation is cut at the first character that is not a digit, so a longer number is wrong.
    """
    num_right = 0
    for first in range(0, len(prompts), batch_size):
        part = prompts[first : first + batch_size]
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
    """Needles in the practised wordings with held-out keys; full windows (at least 85 %)."""

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
    """The form of niah_single_1 (noise), or of niah_single_2 when `passages` are given.

    Held-out keys of two hyphenated words, values of 7 digits, full windows (at least 85 %).
    """

    def draw(rng: random.Random) -> Prompt:
        key = draw_key(rng, held_out=True)
        while key.count("-") != 1:
            key = draw_key(rng, held_out=True)
        value = draw_value(rng, 7)
        if passages is None:
            sentences, separator = [RULER_NOISE] * rng.randint(1, window // 30), "\n"
        else:
            passage = rng.choice(passages)
            start = rng.randrange(max(1, len(passage) - window))
            flat = " ".join(passage[start : start + rng.randint(1, 3 * window)].split())
            sentences, separator = flat.replace(". ", ".\0").split("\0"), " "
        statement = RULER_STATEMENT.format(key=key, value=value)
        sentences.insert(rng.randint(0, len(sentences)), statement)
        context = separator.join(sentences)
        question = RULER_QUESTION.format(key=key)
        return f"{RULER_INTRODUCTION}\n{context}\n{question}", value

    return _filled(draw, tokenizer, count=count, window=window, seed="ruler")


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    window: int,
    batch_size: int = 32,
) -> tuple[float, float]:
    """Bits per UTF-8 byte and nats per token of `texts`, cut into windows behind BOS."""
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
    for first in range(0, len(blocks), batch_size):
        part = blocks[first : first + batch_size]
        width = len(part[-1])
        rows = torch.tensor([block + [pad] * (width - len(block)) for block in part])
        rows = rows.to(model.device)
        with torch.no_grad():
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:], reduction="sum", ignore_index=pad
        )
        nats += losses.item()
    return nats / math.log(2) / num_bytes, nats / num_tokens


def measure(folder: Path, *, count: int = 200, device: str = "cpu") -> dict[str, float]:
    """All measured numbers of the model in `folder`, `count` prompts a task."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    torch.nn.Module.to(model, device)
    window = int(model.config.max_position_embeddings)
    texts = [text for _, text in held_out_documents()]
    recall_rng = seeded_random("recall")
    tasks = {
        "needle": needle_prompts(tokenizer, count=count, window=window, passages=texts),
        "needle_half_window": needle_prompts(
            tokenizer, count=count, window=window // 2, passages=texts
        ),
        "needle_of_four": needle_prompts(
            tokenizer, count=count, window=window, passages=texts, num_distractors=3
        ),
        "ruler_niah_single_1": ruler_prompts(tokenizer, count=count, window=window),
        "ruler_niah_single_2": ruler_prompts(tokenizer, count=count, window=window, passages=texts),
        "key_recall": [key_recall_prompt(recall_rng) for _ in range(count)],
    }
    scores = {name: exact_match(model, tokenizer, prompts) for name, prompts in tasks.items()}
    bits, nats = bits_per_byte(model, tokenizer, texts, window=window)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return scores | {
        "bits_per_byte": bits,
        "nats_per_token": nats,
        "num_prompts": count,
        "num_parameters": num_parameters,
        "num_held_out_modules": len(texts),
    }


def main(arguments: Iterable[str] | None = None) -> int:
    """Command line entry point; prints the numbers as JSON and returns the exit code."""
    parser = argparse.ArgumentParser(prog="longred.demo.measure", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=200, help="prompts per task")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--card",
        metavar="TRAINING",
        help="write MODEL/README.md; tokens, time and machine in words",
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
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
    """Draw until `count` prompts take, with their answer, between 85 and 100 % of `window`."""
    rng = seeded_random(f"{seed}-{window}")
    prompts: list[Prompt] = []
    while len(prompts) < count:
        prompt, answer = draw(rng)
        size = len(tokenizer.backend_tokenizer.encode(prompt).ids) + ANSWER_TOKENS
        if 0.85 * window <= size <= window:
            prompts.append((prompt, answer))
    return prompts


def _leading_digits(text: str) -> str:
    text = text.lstrip(" ")
    end = next((i for i, character in enumerate(text) if not character.isdigit()), len(text))
    return text[:end]


if __name__ == "__main__":
    sys.exit(main())
