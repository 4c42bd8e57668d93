"""Training rows of the base model; they depend on the seed and the step alone."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from longred.demo import wording
from longred.demo.skills import (
    EXERCISES,
    PRACTICE_MIX,
    Exercise,
    dense_exercise,
    draw_exercise,
    recall_exercise,
    seeded_random,
)

# An answer is only a few tokens of a row; with the weight of text it would not be learned.
ANSWER_WEIGHT = 4.0
# The first token of an answer selects one of several values; the rest is copying.
CHOICE_WEIGHT = 24.0
# Text around the answers of an exercise in the mixture; a token of library text has weight 1.
CONTEXT_WEIGHT = 0.25
TEXT_SHARE = 0.5
PAIRS_SHARE = 0.05
BOS_SHARE = 0.75

PRACTICE_SHARES = {
    "lookup": {"dense": 4, "pairs": 4, "repeats": 2},
    "recall": {"dense": 3, "recall": 3, "pairs": 3, "repeats": 1},
}

Row = tuple[np.ndarray, np.ndarray]
Rows = tuple[np.ndarray, np.ndarray, list[str]]
"""tokens int64[num_rows, length], the weight of predicting each of them
float32[num_rows, length], and the kind of each row."""


class RowMaker:
    """Draws the rows of each training step from tokenised modules and new exercises.

    Args:
        tokenizer: the model's tokenizer.
        texts: the training modules.
        seed: any integer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, seed: int
    ) -> None:
        self.tokenizer = tokenizer.backend_tokenizer
        self.bos_id = int(tokenizer.bos_token_id)
        self.num_control = len(tokenizer.all_special_ids)
        self.max_id = len(self.tokenizer.get_vocab()) - 1
        self.texts = texts
        self.seed = seed
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        self.modules = [np.array(item.ids, dtype=np.int64) for item in encoded]
        newline = self.tokenizer.encode("\n", add_special_tokens=False).ids[0]
        self.line_starts = [np.flatnonzero(ids[:-1] == newline) + 1 for ids in self.modules]
        self.sizes = [len(ids) for ids in self.modules]

    def practice_rows(self, step: int, *, num_rows: int, length: int, phase: str) -> Rows:
        """Draw dense pairs, random pairs and repeats; only answers and repeats have weight.

        In the phase "copying", pairs have the simplest forms, all tokens of an answer have the same
        weight, and the next token of a repeat depends on a single token. "recall" adds the wordings
        and shorter values, so that a row holds more of them.
        """
        rng = seeded_random(f"{self.seed}-practice-{step}")
        is_copying = phase == "copying"
        if is_copying:
            kinds = ["dense" if rng.random() < 0.7 else "repeats" for _ in range(num_rows)]
        else:
            shares = PRACTICE_SHARES[phase]
            kinds = rng.choices(list(shares), weights=list(shares.values()), k=num_rows)
        lines = wording.COMPACT[:8] if is_copying else wording.COMPACT
        short = phase == "recall"
        exercises = [
            dense_exercise(rng, length=length, lines=lines, short_values=short)
            if kind == "dense"
            else recall_exercise(rng, length=length, short_values=short)
            for kind in kinds
            if kind in EXERCISES
        ]
        choice_weight = ANSWER_WEIGHT if is_copying else CHOICE_WEIGHT
        encoded = self._encode(exercises, length, 0.0, choice_weight)
        return self._stack(rng, kinds, encoded, length, is_copying=is_copying)

    def mixed_rows(
        self,
        step: int,
        *,
        num_rows: int,
        length: int,
        text_scale: float = 1.0,
        open_share: float = 0.0,
    ) -> Rows:
        """Draw library text, all exercises and a few random pairs.

        `text_scale` multiplies the weight of all tokens outside answers; `open_share` of the worded
        exercises have an open wording.
        """
        rng = seeded_random(f"{self.seed}-mixed-{step}")
        rest = 1.0 - TEXT_SHARE - PAIRS_SHARE
        shares = {"text": TEXT_SHARE, "pairs": PAIRS_SHARE}
        shares |= {kind: rest * share for kind, share in PRACTICE_MIX.items()}
        kinds = rng.choices(list(shares), weights=list(shares.values()), k=num_rows)
        exercises = []
        for kind in kinds:
            if kind in EXERCISES:
                is_full = rng.random() < 0.6
                exercise_length = length - 2 if is_full else rng.randint(length // 3, length - 2)
                exercises.append(
                    draw_exercise(
                        rng,
                        kind,
                        length=exercise_length,
                        passages=self.texts,
                        open_share=open_share,
                    )
                )
        # Dense exercises fill the rows, as in practice documents.
        for exercise in exercises:
            exercise.write_dense(rng, length=length, min_characters=length * 2.6)
        encoded = self._encode(exercises, length, CONTEXT_WEIGHT * text_scale, CHOICE_WEIGHT)
        return self._stack(rng, kinds, encoded, length, text_scale=text_scale)

    def _stack(
        self,
        rng: random.Random,
        kinds: list[str],
        exercises: Iterator[Row],
        length: int,
        *,
        text_scale: float = 1.0,
        is_copying: bool = False,
    ) -> Rows:
        """Return the rows of all kinds; those that are not exercises are drawn here."""
        rows = []
        for kind in kinds:
            if kind in EXERCISES:
                rows.append(next(exercises))
            elif kind == "pairs":
                rows.append(self._random_pairs(rng, length))
            elif kind == "repeats":
                rows.append(self._random_repeats(rng, length, is_copying))
            else:
                tokens, weights = self._text_row(rng, length)
                rows.append((tokens, weights * np.float32(text_scale)))
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), kinds

    def _encode(
        self,
        exercises: Sequence[Exercise],
        length: int,
        text_weight: float,
        choice_weight: float,
    ) -> Iterator[Row]:
        """Yield a row for each exercise: BOS, then its text, cut to the length.

        `choice_weight` is for the first token of an answer, `text_weight` for text outside answers.
        """
        encoded = self.tokenizer.encode_batch(
            [item.text for item in exercises], add_special_tokens=False
        )
        for exercise, item in zip(exercises, encoded, strict=True):
            tokens = np.full(length, self.bos_id, dtype=np.int64)
            weights = np.zeros(length, dtype=np.float32)
            ids = item.ids[: length - 1]
            tokens[1 : len(ids) + 1] = ids
            marks = np.full(len(exercise.text) + 1, text_weight, dtype=np.float32)
            for start, end in exercise.answers:
                marks[start:end] = ANSWER_WEIGHT
                marks[start + (exercise.text[start] == " ")] = choice_weight
            starts = np.array([span[0] for span in item.offsets[: length - 1]], dtype=np.int64)
            weights[1 : len(ids) + 1] = marks[starts]
            yield tokens, weights

    def _random_repeats(self, rng: random.Random, length: int, is_copying: bool) -> Row:
        """Draw spans of random tokens, each twice; the repeat has weight from its second token."""
        tokens: list[int] = [self.bos_id]
        weights: list[float] = [0.0]
        while len(tokens) < length:
            span = self._random_tokens(rng, rng.randint(8, 40))
            if not is_copying:
                # Few symbols: the next token depends on the last two or three, as after a key.
                symbols = span[: rng.choice((5, 6, 7, 8))]
                span = [rng.choice(symbols) for _ in span]
            tokens += span + span
            weights += [0.0] * (len(span) + 1) + [ANSWER_WEIGHT] * (len(span) - 1)
        return np.array(tokens[:length]), np.array(weights[:length], dtype=np.float32)

    def _random_tokens(self, rng: random.Random, num_tokens: int) -> list[int]:
        return [rng.randint(self.num_control, self.max_id) for _ in range(num_tokens)]

    def _random_pairs(self, rng: random.Random, length: int) -> Row:
        """Draw keys and values of random tokens with a constant gap, then repeat them."""
        key_size, value_size = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
        gap = self._random_tokens(rng, rng.choice((0, 1, 1, 2, 2, 3)))
        end = self._random_tokens(rng, 1)
        most = length // (2 * (key_size + len(gap) + value_size + 1))
        num_pairs = rng.randint(3, max(3, most))
        # Few symbols for long keys, so that every token of a key matters.
        symbols = self._random_tokens(rng, 1000 if key_size == 1 else 8)
        pairs: dict[tuple[int, ...], list[int]] = {}
        while len(pairs) < num_pairs:
            value = self._random_tokens(rng, value_size)
            pairs[tuple(rng.choice(symbols) for _ in range(key_size))] = value
        tokens: list[int] = [self.bos_id]
        weights: list[float] = [0.0]
        for key, value in pairs.items():
            tokens += [*key, *gap, *value, *end]
        weights += [0.0] * (len(tokens) - 1)
        while len(tokens) < length:
            key = rng.choice(list(pairs))
            tokens += [*key, *gap, *pairs[key], *end]
            weights += [0.0] * (key_size + len(gap)) + [CHOICE_WEIGHT]
            weights += [ANSWER_WEIGHT] * (value_size - 1) + [0.0]
        return np.array(tokens[:length]), np.array(weights[:length], dtype=np.float32)

    def _text_row(self, rng: random.Random, length: int) -> Row:
        """Cut a piece from a module: mostly BOS and whole lines, sometimes any block of tokens."""
        index = rng.choices(range(len(self.modules)), weights=self.sizes)[0]
        module, lines = self.modules[index], self.line_starts[index]
        with_bos = rng.random() < BOS_SHARE
        room = length - 1 if with_bos else length
        kind = rng.random()
        start = 0 if kind < 0.1 or not len(lines) else int(lines[rng.randrange(len(lines))])
        if not with_bos:
            start = rng.randrange(max(1, len(module) - room))
        cut = module[start : start + room]
        tokens = np.full(length, self.bos_id, dtype=np.int64)
        weights = np.zeros(length, dtype=np.float32)
        first = length - room
        tokens[first : first + len(cut)] = cut
        weights[first : first + len(cut)] = 1.0
        weights[0] = 0.0
        return tokens, weights
