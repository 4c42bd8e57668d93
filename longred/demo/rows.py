"""Training rows of the base model: a pure function from (seed, step) to tokens and loss weights."""

import random
from collections.abc import Sequence

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

# An answer is a few tokens of a row, ordinary text all of them: without weight it goes unheard.
ANSWER_WEIGHT = 4.0
# The first token of an answer is where the right one of several is chosen; the rest is copying.
CHOICE_WEIGHT = 24.0
# What surrounds the answers of an exercise in the mixture; a token of library text weighs 1.
CONTEXT_WEIGHT = 0.25
TEXT_SHARE = 0.5
PAIRS_SHARE = 0.05
BOS_SHARE = 0.75

PRACTICE_SHARES = {
    "lookup": {"dense": 4, "pairs": 4, "repeats": 2},
    "recall": {"dense": 3, "recall": 3, "pairs": 3, "repeats": 1},
}

Rows = tuple[np.ndarray, np.ndarray, list[str]]


class RowMaker:
    """Draws the rows of each training step from tokenised modules and fresh exercises."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, seed: int
    ) -> None:
        """`texts` are the training modules; everything drawn depends on `seed` and the step."""
        self.tokenizer = tokenizer.backend_tokenizer
        self.bos_id = int(tokenizer.bos_token_id)
        self.num_control = len(tokenizer.all_special_ids)
        self.texts = texts
        self.seed = seed
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        self.modules = [np.array(item.ids, dtype=np.int64) for item in encoded]
        newline = self.tokenizer.encode("\n", add_special_tokens=False).ids[0]
        self.line_starts = [np.flatnonzero(ids[:-1] == newline) + 1 for ids in self.modules]
        self.sizes = [len(ids) for ids in self.modules]

    def practice_rows(self, step: int, *, num_rows: int, length: int, phase: str) -> Rows:
        """Dense pairs, random pairs and repeats; only answers and repeats have weight.

        In the phase "copying" pairs are of the simplest forms, all tokens of an answer weigh the
        same, and in repeats a single token tells how to go on. "recall" adds the wordings and
        shortens the values, so that more of them must be told apart.
        Returns tokens int64[num_rows, length], weights float32[num_rows, length] (of predicting
        the token at that position) and the kind of each row.
        """
        rng = seeded_random(f"{self.seed}-practice-{step}")
        copying_only = phase == "copying"
        if copying_only:
            kinds = ["dense" if rng.random() < 0.7 else "repeats" for _ in range(num_rows)]
        else:
            shares = PRACTICE_SHARES[phase]
            kinds = rng.choices(list(shares), weights=list(shares.values()), k=num_rows)
        lines = wording.COMPACT[:8] if copying_only else wording.COMPACT
        short = phase == "recall"
        exercises = [
            dense_exercise(rng, length=length, lines=lines, short_values=short)
            if kind == "dense"
            else recall_exercise(rng, length=length, short_values=short)
            for kind in kinds
            if kind in EXERCISES
        ]
        choice_weight = ANSWER_WEIGHT if copying_only else CHOICE_WEIGHT
        encoded = iter(self._encode(exercises, length, 0.0, choice_weight))
        rows = []
        for kind in kinds:
            if kind in EXERCISES:
                rows.append(next(encoded))
            elif kind == "pairs":
                rows.append(self._random_pairs(rng, length))
            else:
                rows.append(self._random_repeats(rng, length, copying_only))
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), kinds

    def mixed_rows(
        self,
        step: int,
        *,
        num_rows: int,
        length: int,
        text_scale: float = 1.0,
        open_share: float = 0.0,
    ) -> Rows:
        """Library text, all exercises and a few random pairs, in the shapes of `practice_rows`.

        `text_scale` multiplies the weights of whatever is not an answer; `open_share` of the
        worded exercises have an open wording.
        """
        rng = seeded_random(f"{self.seed}-mixed-{step}")
        rest = 1.0 - TEXT_SHARE - PAIRS_SHARE
        shares = {"text": TEXT_SHARE, "pairs": PAIRS_SHARE}
        shares |= {kind: rest * share for kind, share in PRACTICE_MIX.items()}
        kinds = rng.choices(list(shares), weights=list(shares.values()), k=num_rows)
        exercises = [
            draw_exercise(
                rng,
                kind,
                length=self._exercise_length(rng, length),
                passages=self.texts,
                open_share=open_share,
            )
            for kind in kinds
            if kind in EXERCISES
        ]
        encoded = iter(
            self._encode(
                self._lengthened(rng, exercises, length), length, CONTEXT_WEIGHT * text_scale
            )
        )
        rows = []
        for kind in kinds:
            if kind == "text":
                tokens, weights = self._text_row(rng, length)
                rows.append((tokens, weights * np.float32(text_scale)))
            elif kind == "pairs":
                rows.append(self._random_pairs(rng, length))
            else:
                rows.append(next(encoded))
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), kinds

    def _exercise_length(self, rng: random.Random, length: int) -> int:
        return length - 2 if rng.random() < 0.6 else rng.randint(length // 3, length - 2)

    def _lengthened(
        self, rng: random.Random, exercises: list[Exercise], length: int
    ) -> list[Exercise]:
        """Follow each exercise by dense ones, as practice documents do, up to a full row."""
        result = []
        for exercise in exercises:
            text, answers = exercise.text, list(exercise.answers)
            while len(text) < length * 2.6:
                text += "\n" * (not text.endswith("\n")) + "\n"
                more = dense_exercise(rng, length=min(length, 96))
                answers += [(len(text) + start, len(text) + end) for start, end in more.answers]
                text += more.text
            result.append(Exercise(text=text, answers=tuple(answers)))
        return result

    def _encode(
        self,
        exercises: Sequence[Exercise],
        length: int,
        text_weight: float,
        choice_weight: float = CHOICE_WEIGHT,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows that start with BOS, with weights for choices, the rest of answers, and the rest."""
        encoded = self.tokenizer.encode_batch(
            [item.text for item in exercises], add_special_tokens=False
        )
        rows = []
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
            rows.append((tokens, weights))
        return rows

    def _random_repeats(
        self, rng: random.Random, length: int, copying_only: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Spans of random tokens, each written twice; the second time has weight from token 2."""
        tokens: list[int] = [self.bos_id]
        weights: list[float] = [0.0]
        size = len(self.tokenizer.get_vocab()) - 1
        while len(tokens) < length:
            span = [rng.randint(self.num_control, size) for _ in range(rng.randint(8, 40))]
            if not copying_only:
                # Few symbols: how to go on depends on the last two or three, as after a key.
                symbols = span[: rng.choice((5, 6, 7, 8))]
                span = [rng.choice(symbols) for _ in span]
            tokens += span + span
            weights += [0.0] * (len(span) + 1) + [ANSWER_WEIGHT] * (len(span) - 1)
        return np.array(tokens[:length]), np.array(weights[:length], dtype=np.float32)

    def _random_pairs(self, rng: random.Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of random tokens with a constant gap between them, then asked again."""
        size = len(self.tokenizer.get_vocab()) - 1

        def draw(count: int) -> list[int]:
            return [rng.randint(self.num_control, size) for _ in range(count)]

        key_size, value_size = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
        gap, end = draw(rng.choice((0, 1, 1, 2, 2, 3))), draw(1)
        most = length // (2 * (key_size + len(gap) + value_size + 1))
        num_pairs = rng.randint(3, max(3, most))
        # Few symbols for long keys, so that all of a key counts.
        symbols = draw(1000 if key_size == 1 else 8)
        pairs: dict[tuple[int, ...], list[int]] = {}
        while len(pairs) < num_pairs:
            pairs[tuple(rng.choice(symbols) for _ in range(key_size))] = draw(value_size)
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

    def _text_row(self, rng: random.Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        """A cut of a module, mostly behind BOS; sometimes a block from a document's middle."""
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
