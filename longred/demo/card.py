"""The model card of the shipped base model, generated from its measured numbers."""

from datetime import date
from pathlib import Path

from longred.demo.corpus import VALIDATION_FRACTION

_CARD = """\
---
license: other
license_name: psf-2.0-derived
library_name: transformers
language: [en, code]
tags: [llama, demo, long-context]
---
# longred demo base model

A {parameters:.2f} M parameter Llama model with a window of 256 tokens, made to be extended.
It is small enough to be trained, extended and measured on a laptop, and good enough at one
long-text skill (finding a value in text) to show what an extension keeps and what it loses.

## Measured on {date}
Greedy decoding, exact match of the whole number, {count} prompts a task, float32 on a CPU.
Keys, values and text were all unseen in training. Prompts fill the window to 85-100 %.

| task | score |
|---|---|
| needle in text, one number, 256 tokens | {needle:.1%} |
| needle in text, one number, 128 tokens | {needle_half_window:.1%} |
| needle in text, one of four numbers asked, 256 tokens | {needle_of_four:.1%} |
| RULER `niah_single_1` form (noise), 256 tokens | {ruler_niah_single_1:.1%} |
| RULER `niah_single_2` form (library text), 256 tokens | {ruler_niah_single_2:.1%} |
| key recall, 4 pairs | {key_recall:.1%} |
| {modules} held-out modules, bits per byte | {bits_per_byte:.3f} |
| {modules} held-out modules, nats per token | {nats_per_token:.3f} |

RULER's own wording was kept out of base training and practice: its two rows show how far the
skill carries over to a wording that was never seen. (Not a blind test: open wordings joined the
training after an intermediate model had answered 40 % of them.)

## Architecture
Llama: hidden size 128, 6 layers, 4 attention heads of 32 (2 key-value heads), MLP 352, tied
embeddings, rope_theta 10,000. Byte-level BPE tokenizer of 1,024 tokens, one token per
digit; `<|bos|>` opens every text; the spelling of a control token inside a text stays
ordinary text.

## Training
`python -m longred.demo.pretrain --output DIR` with its defaults:
{training}.
Muon for the matrices inside the layers, AdamW for the rest, bf16 autocast. Four phases, the
first three on rows of 128 tokens with loss only on what can be known from the row:
1. Copying: 70 % key-value lines, 30 % repeated random tokens.
2. Lookup: the weight moves to the first token of an answer, where one of several values must be
chosen; pairs of random tokens with constant gaps join.
3. Recall: the same with short values, and with pairs stated in one wording and asked in another.
4. Mixture: rows of 256 tokens, half library text, half exercises (needles in library text
or noise sentences in many wordings, recall, dense pairs, repeated spans, brackets) and a few
rows of random pairs; the weight of the text grows over the first 400 steps, the learning rate
falls linearly to 2 % of its peak, and in the last third most worded exercises get sentences
built from parts ("open wordings") instead of fixed templates.

The schedule was settled while this model was trained, phase by phase from checkpoints: the
script repeats the recipe, not the bits.

The corpus is the Python standard library's source text without its tests (Python 3.11).
Modules are split by a hash of their path: {fraction:.0%} are held out from training and
from the tokenizer. Keys of exercises are split by a hash of their words in the same way.

## Limits and intended use
For demonstrations, tests and teaching of context extension. It knows nothing about the
world, follows no instructions, and writes code that looks like code and does not run. It
has seen windows of 256 tokens only. Values in its exercises are numbers of 4 to 7 digits.

## Licence
Trained on the source text of the Python standard library, which is under the PSF License
Agreement (https://docs.python.org/3/license.html) with parts under licences named there.
The weights may reproduce short pieces of it. The exercises are part of this project and
under its licence.
"""


def write_card(
    folder: Path,
    scores: dict[str, float],
    *,
    date: date,
    training: str,
) -> None:
    """Write `folder`/README.md from the numbers of `measure.measure`, and how it was trained.

    `training` says how many tokens, how long and on what, such as "36 M tokens in 50 minutes".
    """
    card = _CARD.format(
        **scores,
        parameters=scores["num_parameters"] / 1e6,
        count=int(scores["num_prompts"]),
        modules=int(scores["num_held_out_modules"]),
        date=date.isoformat(),
        fraction=VALIDATION_FRACTION,
        training=training,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
