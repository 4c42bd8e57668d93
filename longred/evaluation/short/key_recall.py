"""Key recall: a few stated pairs and a question, with keys and values that no training saw."""

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from longred.demo.skills import key_recall_prompt
from longred.evaluation.ruler.fitting import COMPACT_BUDGET
from longred.evaluation.short.passages import Passages

NUM_PAIRS = 4


def key_recall(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield prompts that end right before a number, and the number."""
    for index in count():
        rng = random.Random(f"{seed}-key_recall-{index}")  # noqa: S311
        for num_pairs in range(NUM_PAIRS, 0, -1):
            prompt, answer = key_recall_prompt(rng, num_pairs=num_pairs, held_out=True)
            if passages.fits(prompt, COMPACT_BUDGET):
                yield {
                    "source": f"{num_pairs} pairs",
                    "input": prompt,
                    "outputs": [answer],
                    "max_new_tokens": COMPACT_BUDGET,
                }
                break
        else:
            return
