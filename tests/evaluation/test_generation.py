"""Answers and likelihoods of many prompts at once against one prompt at a time, in float64."""

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GraniteConfig,
    LlamaConfig,
    Olmo3Config,
    PreTrainedModel,
)

from longred.errors import NonFiniteLossError, PreflightError
from longred.evaluation import generation, runner
from longred.evaluation.generation import Generator, Sampling
from longred.evaluation.runner import Runner, Tokens
from longred.models.extension import extend_config
from tests.attention.test_attention import FAMILIES, SHAPE, build

EOS = 3
MODELS = {
    **FAMILIES,
    "olmo3": lambda: Olmo3Config(
        **SHAPE, sliding_window=24, layer_types=["sliding_attention", *["full_attention"] * 2]
    ),
    "granite": lambda: GraniteConfig(**SHAPE, logits_scaling=3.0, embedding_multiplier=5.0),
}


class Words:
    """A tokenizer of whole numbers: token 12 is the text `<12>`."""

    eos_token_id = EOS

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(f"<{token}>" for token in tokens)


def model_of(config: Any, implementation: str = "longred") -> PreTrainedModel:
    model = build(config, implementation).eval()
    # The tokenizer says what ends an answer.
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=MODELS)
def models(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model with our attention, and with transformers' own."""
    config = MODELS[request.param]()
    return model_of(config, "longred"), model_of(config, "eager")


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of(FAMILIES["llama"]())


def draw_prompts(num_prompts: int = 14, longest: int = 150) -> list[Tokens]:
    """Prompts of many lengths; most begin as another one does, up to anywhere."""
    rng = np.random.default_rng(0)
    prompts: list[list[int]] = []
    for number in range(num_prompts):
        tokens = rng.integers(4, SHAPE["vocab_size"], rng.integers(1, longest)).tolist()
        if number % 4:
            earlier = prompts[rng.integers(len(prompts))]
            tokens = earlier[: rng.integers(len(earlier) + 1)] + tokens[:20]
        prompts.append(tokens)
    return [np.array(prompt, np.int64) for prompt in (*prompts, prompts[0])]


@torch.no_grad()
def one_by_one(model: Any, prompt: Tokens, max_tokens: int, stop: str | None) -> list[int]:
    """Run the whole text again for every token."""
    answer: list[int] = []
    while len(answer) < max_tokens:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, -1]
        answer.append(int(logits.argmax()))
        if answer[-1] == EOS or (stop and stop in Words().decode(answer)):
            break
    return answer


def generator_of(model: Any, batch_tokens: int | str = "auto") -> Generator:
    return Generator(Runner(model, batch_tokens), Words())


@pytest.mark.parametrize("batch_tokens", [1, 500, "auto"])
def test_answers_are_those_of_one_prompt_at_a_time(
    models: tuple[Any, Any], batch_tokens: int | str
) -> None:
    ours, theirs = models
    prompts = draw_prompts(6 if batch_tokens == 1 else 14)
    # A text that some answers contain.
    stop = f"<{one_by_one(theirs, prompts[0], 4, None)[-1]}>"
    found = generator_of(ours, batch_tokens).generate(
        prompts, max_tokens=9, stop=[stop], sampling=Sampling()
    )
    assert found == [one_by_one(theirs, prompt, 9, stop) for prompt in prompts]
    assert {len(answer) for answer in found} != {9}


@pytest.mark.parametrize("batch_tokens", [1, 300, "auto"])
def test_hidden_states_are_those_of_one_row_at_a_time(
    models: tuple[Any, Any], batch_tokens: int | str
) -> None:
    ours, theirs = models
    rows = draw_prompts()
    num_last = [min(len(row), 1 + number % 5) for number, row in enumerate(rows)]
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for numbers, hidden in Runner(ours, batch_tokens).hidden_of(rows, num_last):
            found.update(zip(numbers, hidden, strict=True))
        for number, (row, count) in enumerate(zip(rows, num_last, strict=True)):
            expected = theirs.base_model(torch.from_numpy(row)[None]).last_hidden_state[0, -count:]
            assert found[number].shape == expected.shape
            assert ((found[number] - expected).norm() / expected.norm()).item() < 5e-5


class Count:
    """Counts the tokens that a model runs."""

    def __init__(self, model: Any) -> None:
        self.num_tokens, self.shapes = 0, []
        self._hook = model.base_model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module: Any, args: Any, kwargs: Any) -> None:
        self.num_tokens += kwargs["input_ids"].numel()
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    def close(self) -> None:
        self._hook.remove()


def counted(model: Any, work: Callable[[], Any]) -> Count:
    count = Count(model)
    with torch.no_grad():
        work()
    count.close()
    return count


def test_what_prompts_have_in_common_runs_once(llama: Any) -> None:
    """A needle at another depth of the same text: what precedes it is not run again."""
    text = np.random.default_rng(1).integers(4, 50, 200)
    depths = [180, 40, 120, 160]
    rows: list[Tokens] = [np.insert(text, depth, [1, 2]) for depth in depths]
    ran = counted(llama, lambda: [*Runner(llama, 1).hidden_of(rows, [1] * 4)])
    # In order of their depth: whole, then from the needle of the one before on.
    in_turn = sorted(depths)
    least = 202 + sum(202 - depth for depth in in_turn[:-1])
    assert ran.num_tokens <= least + 4
    answer = counted(
        llama,
        lambda: generator_of(llama, 1).generate(rows, max_tokens=1, stop=[], sampling=Sampling()),
    )
    assert answer.num_tokens <= least + 4


def test_examples_before_many_questions_run_once(llama: Any) -> None:
    rng = np.random.default_rng(2)
    examples = rng.integers(4, 50, 300)
    rows = [np.concatenate([examples, rng.integers(4, 50, 10)]) for _ in range(20)]
    ran = counted(llama, lambda: [*Runner(llama).hidden_of(rows, [2] * 20)])
    assert ran.num_tokens == 300 + 20 * 10


def test_finished_answers_make_room(llama: Any) -> None:
    """Prompts are admitted in between; the last answers run in fewer rows."""
    prompts = [prompt[:30] for prompt in draw_prompts(40, 30)]
    ran = counted(
        llama,
        lambda: generator_of(llama, 400).generate(
            prompts, max_tokens=12, stop=["<7>", "<9>"], sampling=Sampling()
        ),
    )
    steps = [shape[0] for shape in ran.shapes if shape[1] == 1]
    assert max(steps) <= 400 // 13
    assert min(steps) < max(steps)


def test_memory_that_runs_out_halves_the_batch(
    llama: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = draw_prompts()
    sampling = Sampling(temperature=0.9)
    settings: dict[str, Any] = {"max_tokens": 6, "stop": [], "sampling": sampling}
    expected = generator_of(llama).generate(prompts, **settings)
    real = Runner.step

    def step(self: Runner, tokens: Sequence[int], *args: Any) -> Tensor:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no memory")
        return real(self, tokens, *args)

    monkeypatch.setattr(Runner, "step", step)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert generator_of(llama, 4000).generate(prompts, **settings) == expected
    assert "out of memory: going on with 2000 tokens at a time" in caplog.text
    monkeypatch.setattr(Runner, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(PreflightError, match=r"evaluation\.batch_tokens: a single prompt"):
        generator_of(llama, 4000).generate(prompts, **settings)


def test_likelihoods_survive_memory_that_runs_out(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = draw_prompts()
    real, found = Runner.prefill, {}

    def prefill(self: Runner, prompts: Sequence[Tokens], cache: Any, piece: Any, *args: Any) -> Any:
        if len(prompts) * (max(map(len, prompts)) - piece.start) > 200:
            raise torch.OutOfMemoryError("no memory")
        return real(self, prompts, cache, piece, *args)

    monkeypatch.setattr(Runner, "prefill", prefill)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    run = Runner(llama, 600)

    def work() -> None:
        left = [number for number in range(len(rows)) if number not in found]
        for places, hidden in run.hidden_of([rows[n] for n in left], [1] * len(left)):
            found.update(zip((left[place] for place in places), hidden, strict=True))

    with torch.no_grad():
        run.halving(work, max(map(len, rows)))
    assert sorted(found) == list(range(len(rows)))
    assert run.batch_tokens < 600


def test_copies_of_shared_keys_count_as_memory(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short questions after long examples: every row holds the keys of the examples."""
    rng = np.random.default_rng(2)
    examples = rng.integers(4, 50, 300)
    rows = [np.concatenate([examples, rng.integers(4, 50, 10)]) for _ in range(20)]
    real, found = Runner.prefill, {}

    def prefill(self: Runner, prompts: Sequence[Tokens], *args: Any) -> Any:
        if len(prompts) * 310 > 1000:
            raise torch.OutOfMemoryError("no memory")
        return real(self, prompts, *args)

    monkeypatch.setattr(Runner, "prefill", prefill)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    run = Runner(llama, 4000)

    def work() -> None:
        for places, hidden in run.hidden_of(rows, [1] * len(rows)):
            found.update(zip(places, hidden, strict=True))

    with torch.no_grad():
        run.halving(work, 310)
    assert len(found) == 20
    assert run.batch_tokens == 1000


def test_drawn_answers_do_not_depend_on_other_prompts(llama: Any) -> None:
    prompts = draw_prompts()
    sampling = Sampling(temperature=0.9, top_k=20, top_p=0.95)
    settings: dict[str, Any] = {"max_tokens": 6, "stop": [], "sampling": sampling}
    together = generator_of(llama).generate(prompts, **settings)
    assert generator_of(llama, 1).generate(prompts, **settings) == together
    # The last prompt repeats the first one, and is answered on its own.
    assert generator_of(llama).generate(prompts[:3], **settings) == together[:3]
    assert together[0] != together[-1]


def test_drawn_tokens_follow_their_probabilities(llama: Any) -> None:
    prompt = np.array([5, 9, 11])
    sampling = Sampling(temperature=0.7, top_k=4)
    with torch.no_grad():
        logits = llama(torch.from_numpy(prompt)[None]).logits[0, -1] / 0.7
    best = logits.topk(4)
    expected = dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))
    answers = generator_of(llama).generate([prompt] * 400, max_tokens=1, stop=[], sampling=sampling)
    drawn = [answer[0] for answer in answers]
    assert set(drawn) <= set(expected)
    for token, share in expected.items():
        assert abs(drawn.count(token) / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5 + 1e-9


def test_a_penalty_for_repetition_is_transformers_own(llama: Any) -> None:
    model = copy.deepcopy(llama)
    prompts = [prompt for prompt in draw_prompts() if len(prompt) > 3]
    found = generator_of(model).generate(
        prompts, max_tokens=8, stop=[], sampling=Sampling(repetition_penalty=1.3)
    )
    settings = GenerationConfig(
        max_new_tokens=8, repetition_penalty=1.3, do_sample=False, eos_token_id=EOS, pad_token_id=0
    )
    for prompt, answer in zip(prompts, found, strict=True):
        tokens = torch.from_numpy(prompt)[None]
        theirs = model.generate(tokens, generation_config=settings, use_cache=False)
        assert theirs[0, len(prompt) :].tolist() == answer


def test_logits_that_are_nan_are_one_error(llama: Any) -> None:
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.lm_head.weight[:, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="logits are not finite"):
        generator_of(broken).generate(
            [np.array([5, 6])], max_tokens=2, stop=[], sampling=Sampling()
        )


def longrope(longest_short: int, long_factor: float) -> Any:
    """A model whose RoPE has other frequencies beyond so many tokens."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [long_factor * (1 + pair) for pair in range(4)],
        "original_max_position_embeddings": longest_short,
    }
    if long_factor == 1.0:
        rope["short_factor"] = rope["long_factor"]
    return LlamaConfig(**SHAPE, rope_parameters=rope)


def test_rope_that_depends_on_the_length_runs_prompts_whole() -> None:
    rows = [np.arange(100) % 40 + 4 for _ in range(3)]
    for factor, shapes in ((8.0, [(3, 100)]), (1.0, [(1, 99), (3, 1)])):
        model = model_of(longrope(64, factor))
        ran = counted(model, lambda model=model: [*Runner(model).hidden_of(rows, [1] * 3)])
        assert ran.shapes == shapes


def mixed_windows() -> Any:
    """A student with the original RoPE up to 64 tokens."""
    before = LlamaConfig(**{**SHAPE, "max_position_embeddings": 64})
    settings = {"short_factor": "original", "long_factor": [1.0, 2.0, 8.0, 64.0]}
    after = extend_config(before, method="longrope", target_window=256, **settings)
    assert runner.rope_switch(after) == 64
    return after


@pytest.mark.parametrize("make", [lambda: longrope(64, 8.0), mixed_windows])
@pytest.mark.parametrize("batch_tokens", [1, "auto"])
def test_rope_that_depends_on_the_length_changes_for_each_prompt_alone(
    batch_tokens: int | str, make: Callable[[], Any]
) -> None:
    """Some answers begin on one side of the change and end on the other."""
    config = make()
    ours, theirs = model_of(config), model_of(config, "eager")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 50, size) for size in (50, 80, 40, 70, 45, 64, 60, 58, 63, 66)]
    found = generator_of(ours, batch_tokens).generate(
        prompts, max_tokens=8, stop=[], sampling=Sampling()
    )
    assert found == [one_by_one(theirs, prompt, 8, None) for prompt in prompts]
    drawing: dict[str, Any] = {"max_tokens": 8, "stop": [], "sampling": Sampling(temperature=0.9)}
    drawn = generator_of(ours, batch_tokens).generate(prompts, **drawing)
    assert drawn == [generator_of(ours).generate([each], **drawing)[0] for each in prompts]
    with torch.no_grad():
        for numbers, hidden in Runner(ours, batch_tokens).hidden_of(prompts, [1] * len(prompts)):
            for number, state in zip(numbers, hidden, strict=True):
                row = torch.from_numpy(prompts[number])[None]
                expected = theirs.base_model(row).last_hidden_state[0, -1:]
                assert ((state - expected).norm() / expected.norm()).item() < 5e-5


def test_auto_batches_are_bounded_by_free_memory(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_per_token = 2 * 3 * 2 * 8 * 8
    memory = type("Memory", (), {"available": 4000 * bytes_per_token})
    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: memory)
    assert runner.auto_batch_tokens(llama) == 1000
    memory.available = 10**15
    assert runner.auto_batch_tokens(llama) == runner.MAX_BATCH_TOKENS["cpu"]
    assert generation.MAX_ROWS["cpu"] < generation.MAX_ROWS["cuda"]


def test_memory_that_this_process_keeps_counts_as_free(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1000]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(10**6))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[-1], 10**7))
    model = SimpleNamespace(config=llama.config, dtype=torch.bfloat16, device="cuda")
    assert runner.auto_batch_tokens(model) == int(0.8 * 10**6) // (2 * 3 * 2 * 8 * 2)
