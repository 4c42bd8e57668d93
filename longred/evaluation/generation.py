"""Generates answers token by token; finished answers make room for the next prompts.

transformers' own continuous batching needs the flash-attn package, or a dense mask of all tokens of
a batch.

Shapes: N rows, V vocabulary.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from longred.errors import NonFiniteLossError
from longred.evaluation.cache import Piece, RowCache
from longred.evaluation.runner import Runner, Tokens

MAX_ROWS = {"cpu": 64, "cuda": 256}
"""Most prompts at a time: more are not faster."""
MAX_CLASS_RATIO = 2.0
"""Prompts in one cache differ in size by at most this factor."""
NOT_FINITE = (
    "the model's {} not finite; check the model's weights, or set evaluation.dtype to float32"
)

IsFinished = Callable[["_Row"], bool]


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
        temperature: 0 for the likeliest token.
        top_k: draw from so many likeliest tokens; 0 for all.
        top_p: draw from the likeliest tokens with this total probability.
        repetition_penalty: divisor of the logits of tokens that the row contains already.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass
class _Row:
    """A prompt that is being answered.

    Attributes:
        prompt: the prompt; see `extend`.
        seed: of what is drawn.
        answer: the tokens so far.
        num_read: tokens of the answer that the prompt ends with.
        generator: draws.
    """

    prompt: Tokens
    seed: int
    answer: list[int] = field(default_factory=list)
    num_read: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)

    @cached_property
    def seen(self) -> Tensor:
        """The different tokens of the prompt."""
        return torch.from_numpy(np.unique(self.prompt))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with its answer."""
        return len(self.prompt) + len(self.answer) - self.num_read

    def start(self) -> None:
        """Forget the answer behind the prompt; the next one is the same."""
        del self.answer[self.num_read :]
        self.generator.manual_seed((self.seed + (self.num_read << 32)) % 2**63)

    def extend(self) -> None:
        """Make the answer so far part of the prompt."""
        self.prompt = np.append(self.prompt, np.array(self.answer[self.num_read :], np.int64))
        self.num_read = len(self.answer)


class Generator:
    """Generates with a model in transformers.

    Args:
        runner: the model.
        tokenizer: its tokenizer.
    """

    def __init__(self, runner: Runner, tokenizer: Any) -> None:
        self.runner, self._tokenizer = runner, tokenizer
        self._eos_ids = eos_ids(runner.model, tokenizer)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        max_tokens: int,
        stop: Sequence[str],
        sampling: Sampling,
    ) -> list[list[int]]:
        """Return the tokens after each prompt, up to EOS, a stop text or `max_tokens`.

        What is drawn for a prompt depends on the prompt, and on how many equal ones precede it, but
        not on the other prompts.

        Raises:
            NonFiniteLossError: logits are NaN.
            PreflightError: one prompt does not fit into memory.
        """
        rows = [_Row(*each) for each in zip(prompts, _seeds(prompts), strict=True)]
        # No stop text is in more tokens than it has bytes, and one more that it begins within.
        tail = max((len(text.encode()) + 1 for text in stop), default=0)

        def is_finished(row: _Row) -> bool:
            if len(row.answer) >= max_tokens or row.answer[-1] in self._eos_ids:
                return True
            if not stop:
                return False
            text = self._tokenizer.decode(row.answer[-tail:], skip_special_tokens=True)
            return any(word in text for word in stop)

        order = self.runner.in_order([row.prompt for row in rows])
        waiting = deque(rows[number] for number in order)
        while waiting:
            alike = self._alike(waiting)
            num_slots = max(len(row.prompt) for row in alike) + max_tokens
            left = deque(alike)
            answer = partial(self._answer, left, num_slots, is_finished, sampling)
            self.runner.halving(answer, num_slots)
            # RoPE changed with their length: their keys are computed again.
            longer = [row for row in alike if not is_finished(row)]
            for row in longer:
                row.extend()
            waiting.extendleft(longer)
        return [row.answer for row in rows]

    def _alike(self, waiting: "deque[_Row]") -> list[_Row]:
        """Take from `waiting` the first prompts of similar size, which share a cache."""
        most = len(waiting[0].prompt)
        is_beyond, alike = self.runner.is_beyond(most), []
        while waiting and most <= MAX_CLASS_RATIO * len(waiting[0].prompt):
            if self.runner.is_beyond(len(waiting[0].prompt)) != is_beyond:
                break
            alike.append(waiting.popleft())
        return alike

    def _answer(
        self, waiting: deque[_Row], num_slots: int, is_finished: IsFinished, sampling: Sampling
    ) -> None:
        """Answer prompts of similar size, as many at a time as fit; empties `waiting`.

        An answer with which the text becomes longer than where RoPE changes is left unfinished.
        """
        runner = self.runner

        def is_done(row: _Row) -> bool:
            is_at_change = runner.is_beyond(row.num_tokens) > runner.is_beyond(len(row.prompt))
            return is_at_change or is_finished(row)

        num_rows = max(1, runner.batch_tokens // num_slots)
        num_rows = min(num_rows, len(waiting), MAX_ROWS[runner.device.type])
        board = _Board(runner, num_rows, num_slots)
        try:
            while waiting or board.active:
                if waiting and board.wants_more:
                    rows, hidden_ND = board.admit(waiting)
                else:
                    if not waiting:
                        board.shrink()
                    rows, hidden_ND = board.advance()
                for row, token in zip(rows, self._choose(rows, hidden_ND, sampling), strict=True):
                    row.answer.append(token)
                board.dismiss(is_done)
        except torch.OutOfMemoryError:
            waiting.extendleft(reversed(board.active))
            raise

    def _choose(self, rows: Sequence[_Row], hidden_ND: Tensor, sampling: Sampling) -> list[int]:
        """Return the next token of each row."""
        logits_NV = self.runner.logits(hidden_ND)
        if bool(logits_NV.isnan().any()):
            raise NonFiniteLossError(NOT_FINITE.format("logits are"))
        if sampling == Sampling():
            greedy: list[int] = logits_NV.argmax(-1).tolist()
            return greedy
        return [_draw(row, scores, sampling) for row, scores in zip(rows, logits_NV, strict=True)]


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: those of generation_config.json and the tokenizer's."""
    listed = model.generation_config.eos_token_id
    found = listed if isinstance(listed, list) else [listed]
    return frozenset(int(i) for i in (*found, tokenizer.eos_token_id) if i is not None)


class _Board:
    """The prompts that are being answered, each in a row of one cache."""

    def __init__(self, runner: Runner, num_rows: int, num_slots: int) -> None:
        self._runner, self._cache = runner, RowCache(num_rows, num_slots)
        self._rows: list[_Row | None] = [None] * num_rows
        # The prompt whose keys a row of the cache holds, also after its answer is finished; empty
        # if prompts cannot take keys from each other.
        self._held: list[Tokens] = [np.empty(0, np.int64)] * num_rows

    @property
    def active(self) -> list[_Row]:
        """The rows whose answers are not finished."""
        return [row for row in self._rows if row is not None]

    @property
    def wants_more(self) -> bool:
        """Whether so many rows are free that new prompts are worth an interruption."""
        num_free = self._rows.count(None)
        return num_free >= max(1, len(self._rows) // 4)

    def admit(self, waiting: "deque[_Row]") -> tuple[list[_Row], Tensor]:
        """Take some prompts into free rows; return them and the hidden_ND of their last tokens."""
        free = [place for place, row in enumerate(self._rows) if row is None]
        group: list[_Row] = []
        starts: list[int] = []
        sources: list[int] = []
        while waiting and len(group) < len(free):
            source, start = self._nearest(waiting[0].prompt)
            ends = [len(row.prompt) for row in (*group, waiting[0])]
            first = min([start, *starts])
            if group and (max(ends) - first) * len(ends) > self._runner.pass_tokens:
                break
            group.append(waiting.popleft())
            starts.append(start)
            sources.append(source)
        targets = free[: len(group)]
        # In place before the first pass, which may run out of memory.
        for place, row in zip(targets, group, strict=True):
            row.start()
            self._rows[place] = row
        prompts = [row.prompt for row in group]
        start, shortest = min(starts), min(map(len, prompts))
        count = self._runner.shared(prompts, shortest - 1) if len(group) > 1 else 0
        if count > start:
            whole = Piece([sources[0]], starts[0], targets[:1])
            if starts[0] < count:
                self._runner.prefill(prompts[:1], self._cache, whole, [count])
                sources = [targets[0]] * len(group)
            else:
                sources = [sources[0]] * len(group)
            start = count
        hidden_NTD = self._runner.prefill(prompts, self._cache, Piece(sources, start, targets))
        if self._runner.splits:
            for place, prompt in zip(targets, prompts, strict=True):
                self._held[place] = prompt
        lasts = torch.tensor([len(prompt) - start - 1 for prompt in prompts])
        return group, hidden_NTD[torch.arange(len(group)), lasts]

    def _nearest(self, prompt: Tokens) -> tuple[int, int]:
        """Return the row of the cache that begins most like a prompt, and how long they agree."""
        sizes = [self._runner.shared([prompt, held], len(prompt) - 1) for held in self._held]
        place = max(range(len(sizes)), key=sizes.__getitem__)
        return place, sizes[place]

    def advance(self) -> tuple[list[_Row], Tensor]:
        """Run the newest token of every answer; return the rows and its hidden_ND.

        Free rows run along with a token that nothing reads, behind the prompt that they hold.
        """
        rows = self._rows
        tokens = [row.answer[-1] if row else 0 for row in rows]
        lengths = [
            row.num_tokens - 1 if row else len(held)
            for row, held in zip(rows, self._held, strict=True)
        ]
        hidden_ND = self._runner.step(tokens, lengths, self._cache)
        places = [place for place, row in enumerate(rows) if row is not None]
        return self.active, hidden_ND[places]

    def dismiss(self, is_finished: Callable[[_Row], bool]) -> None:
        """Free the rows whose answers are finished."""
        self._rows = [None if row is None or is_finished(row) else row for row in self._rows]

    def shrink(self) -> None:
        """Drop the free rows for good, if they are half of all."""
        places = [place for place, row in enumerate(self._rows) if row is not None]
        if 2 * len(places) <= len(self._rows):
            self._cache.keep(places)
            self._rows = [self._rows[place] for place in places]
            self._held = [self._held[place] for place in places]


def _draw(row: _Row, logits_V: Tensor, sampling: Sampling) -> int:
    """Choose the next token of one row."""
    processors = LogitsProcessorList()
    seen: Any = None
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        seen = torch.cat([row.seen, torch.tensor(row.answer, dtype=torch.long)])
        seen = seen[None].to(logits_V.device)
    if sampling.temperature:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
    scores_V = processors(seen, logits_V[None])[0]
    if not sampling.temperature:
        return int(scores_V.argmax())
    probs_V = scores_V.softmax(-1).cpu()
    return int(torch.multinomial(probs_V, 1, generator=row.generator))


def _seeds(prompts: Sequence[Tokens]) -> list[int]:
    """Return a seed for each prompt; equal prompts get different ones."""
    counts: Counter[bytes] = Counter()
    seeds = []
    for prompt in prompts:
        digest = sha256(prompt.tobytes()).digest()
        counts[digest] += 1
        seeds.append((int.from_bytes(digest[:7], "big") + counts[digest]) % 2**63)
    return seeds
