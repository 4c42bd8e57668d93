"""Properties of every task, at every length, with every kind of tokenizer."""

import re
from functools import cache
from typing import Any

import pytest
from oracles import V1_TASKS, solve, whole
from transformers import PreTrainedTokenizerFast

from longred.config.evaluation import RULER_TASKS, RULER_V2_TASKS
from longred.errors import ConfigError, PreflightError
from longred.evaluation import ruler
from longred.evaluation.counting import count_tokens, token_counter
from longred.evaluation.ruler.haystacks import NOISE
from longred.evaluation.ruler.materials import library_text
from longred.evaluation.ruler.questions import own_questions
from longred.evaluation.ruler.retrieval import NEEDLE

CELLS = [
    (512, 2),
    pytest.param(1024, 2, marks=pytest.mark.medium),
    (4096, 2),
    pytest.param(32768, 1, marks=pytest.mark.medium),
]


def minimum_length(task: str, tokenizer: Any, parameters: Any) -> int:
    """Return the minimum length, as named by the error for a shorter one."""
    with pytest.raises(ConfigError, match=r"needs at least (\d+) tokens") as refused:
        ruler.generate(
            task, length=1, num_samples=1, tokenizer=tokenizer, seed=0, parameters=parameters
        )
    found = re.search(r"needs at least (\d+) tokens", str(refused.value))
    assert found
    return int(found[1])


@cache
def largest_word(tokenizer: Any) -> int:
    """Return the most tokens that one word of the haystack text takes."""
    words = {word for text in library_text() for word in text.split() if len(word) > 12}
    return max(token_counter(tokenizer)(sorted(words)))


def largest_unit(task: str, tokenizer: Any) -> int:
    """Return the most tokens that one more unit of a task's haystack takes."""
    uuid = "5e7d0c1b-92af-4b3e-8f6a-1d2c3b4a5968"
    documents = {
        "qa_1": own_questions("squad").documents,
        "qa_2": own_questions("hotpot").documents,
    }
    units = {
        "niah_single_1": [NOISE + "\n"],
        "vt": [NOISE + "\n"],
        "niah_multikey_2": [NEEDLE.format(kind="number", key="counter-xylophone", value=1234567)],
        "niah_multikey_3": [NEEDLE.format(kind="uuid", key=uuid, value=uuid)],
        "kv_retrieval": [f'"{uuid}": "{uuid}",\n '],
        "cwe": ["1234. responsibilities "],
        # Several words can become more frequent at the same time.
        "fwe": ["qxzwvk " * 5],
        **{
            name: [f"Document 10:\n{text}\n\n" for text in texts]
            for name, texts in documents.items()
        },
    }
    if task not in units:
        return largest_word(tokenizer) + 2
    return max(token_counter(tokenizer)(units[task])) + 2


@pytest.mark.parametrize("task", V1_TASKS)
@pytest.mark.parametrize(("length", "count"), CELLS)
def test_prompts_are_full_never_too_long_and_answerable(
    any_tokenizer: Any, task: str, length: int, count: int
) -> None:
    parameters = ruler.resolve_parameters("auto", length)
    minimum = minimum_length(task, any_tokenizer, parameters)
    if length < minimum:
        with pytest.raises(ConfigError, match=rf"evaluation\.ruler\.lengths: {length}.*{minimum}"):
            ruler.generate(task, length=length, num_samples=1, tokenizer=any_tokenizer, seed=0)
        return
    samples = ruler.generate(
        task, length=length, num_samples=count, tokenizer=any_tokenizer, seed=0
    )
    for sample in samples:
        used = count_tokens(any_tokenizer, whole(sample)) + sample["max_new_tokens"]
        assert used <= length
        assert used == sample["num_tokens"] + sample["max_new_tokens"]
        if length >= 4096:
            assert used >= 0.97 * length
        else:
            assert length - used < largest_unit(task, any_tokenizer)
    references = [sample["outputs"] for sample in samples]
    prompts = [whole(sample) for sample in samples]
    assert ruler.score(task, solve(task, prompts), references) == 100.0
    assert ruler.score(task, [""] * count, references) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["niah_multikey_1", "niah_multikey_3", "cwe", "qa_1"])
def test_prompts_of_the_longest_windows(tokenizers: dict[str, Any], task: str) -> None:
    test_prompts_are_full_never_too_long_and_answerable(tokenizers["bpe"], task, 131072, 1)


@pytest.mark.medium
@pytest.mark.parametrize("task", V1_TASKS)
def test_at_the_minimum_every_sample_fits(any_tokenizer: Any, task: str) -> None:
    minimum = minimum_length(task, any_tokenizer, "compact")

    def make(length: int) -> list[dict[str, Any]]:
        return ruler.generate(
            task,
            length=length,
            num_samples=8,
            tokenizer=any_tokenizer,
            seed=3,
            parameters="compact",
        )

    samples = make(minimum)
    prompts = [whole(sample) for sample in samples]
    assert ruler.score(task, solve(task, prompts), [s["outputs"] for s in samples]) == 100.0
    with pytest.raises(ConfigError, match=rf"needs at least {minimum} tokens"):
        make(minimum - 1)


@pytest.mark.medium
@pytest.mark.parametrize("task", V1_TASKS)
def test_samples_depend_on_nothing_else(tokenizers: dict[str, Any], task: str) -> None:
    def make(count: int, length: int = 1024, seed: int = 0) -> list[dict[str, Any]]:
        return ruler.generate(
            task, length=length, num_samples=count, tokenizer=tokenizers["bpe"], seed=seed
        )

    alone = make(3)
    make(2, length=1536)
    assert make(5)[:3] == alone
    assert [s["input"] for s in make(3, seed=1)] != [s["input"] for s in alone]
    assert len({s["input"] for s in make(5)}) == 5


@pytest.mark.parametrize("task", V1_TASKS)
@pytest.mark.parametrize("parameters", ["full", "compact"])
def test_answers_fit_the_budget(tokenizers: dict[str, Any], task: str, parameters: Any) -> None:
    tokenizer = tokenizers["unigram" if task == "vt" else "bpe"]
    samples = ruler.generate(
        task,
        length=4096 if parameters == "full" else 1024,
        num_samples=4,
        tokenizer=tokenizer,
        seed=0,
        parameters=parameters,
    )
    for sample in samples:
        assert sample["parameters"] == parameters
        answer = solve(task, [whole(sample)])[0]
        tokens = len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])
        assert tokens <= sample["max_new_tokens"] * (2 if task == "cwe" else 1)


def test_table_is_the_configuration(tokenizers: dict[str, Any]) -> None:
    assert (*RULER_TASKS, "kv_retrieval", *RULER_V2_TASKS) == tuple(ruler.TASKS)
    budgets = {name: ruler.TASKS[name].full.budget for name in V1_TASKS}
    assert budgets == {
        **dict.fromkeys([name for name in RULER_TASKS if name.startswith("niah")], 128),
        "vt": 30,
        "cwe": 120,
        "fwe": 50,
        "qa_1": 32,
        "qa_2": 32,
        "kv_retrieval": 100,
    }
    metrics = {name for name, task in ruler.TASKS.items() if task.metric == "any_match"}
    assert metrics == {"qa_1", "qa_2"}


def test_unknown_tasks_are_refused(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown; did you mean niah_single_1"):
        ruler.check_task("niah_single1")
    with pytest.raises(ConfigError, match=r"evaluation\.ruler\.haystack: niah_single_2"):
        ruler.generate(
            "niah_single_2",
            length=512,
            num_samples=1,
            tokenizer=tokenizers["bpe"],
            seed=0,
            haystack=["\n"],
        )


def test_tokenizers_that_make_no_tokens_are_refused() -> None:
    from tokenizers import Tokenizer, models

    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(PreflightError, match="returns no tokens for text"):
        ruler.generate("niah_single_1", length=512, num_samples=1, tokenizer=empty, seed=0)


def test_many_prompts_are_counted_as_one(any_tokenizer: Any) -> None:
    texts = ["", "a", " a b\n\nc", "VAR X = 12345 \n", library_text()[3], "é 你好 \t<s> 12"]
    assert token_counter(any_tokenizer)(texts) == [count_tokens(any_tokenizer, t) for t in texts]


def test_tokenizers_without_a_batch_call_are_counted_one_by_one(any_tokenizer: Any) -> None:
    class Plain:
        def __call__(self, text: str, **settings: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(character) for character in text]}

    assert token_counter(Plain())(["abc", ""]) == [3, 0]
