"""RULER samples: how full they are, what they depend on, and how answers are scored."""

import re
from typing import Any

import pytest

from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.prompts import count_tokens
from longred.evaluation.ruler.fitting import generation_budget, largest_fit
from longred.evaluation.ruler.haystacks import NOISE, Haystack

LENGTHS = (320, 512, 1024)


def make(tokenizer: Any, documents: Any, task: str, length: int, n: int = 8, seed: int = 0) -> Any:
    return ruler.generate(
        task,
        length=length,
        num_samples=n,
        tokenizer=tokenizer,
        seed=seed,
        haystack=[text for _, text in documents],
    )


def prompt(sample: dict[str, Any]) -> str:
    return f"{sample['input']} {sample['prefix']}"


@pytest.mark.parametrize("task", list(ruler.TASKS))
@pytest.mark.parametrize("length", LENGTHS)
def test_prompts_are_full_and_never_too_long(
    tokenizer: Any, documents: Any, task: str, length: int
) -> None:
    unit = count_tokens(tokenizer, NOISE + "\n") + 2
    for sample in make(tokenizer, documents, task, length):
        used = count_tokens(tokenizer, prompt(sample)) + sample["max_new_tokens"]
        assert used <= length
        assert sample["num_tokens"] + sample["max_new_tokens"] == used
        # A word of source text can be a long run of white space or rulers.
        assert length - used < (unit if task == "niah_single_1" else 60)


@pytest.mark.parametrize("task", list(ruler.TASKS))
def test_needle_stands_in_prompt_once(tokenizer: Any, documents: Any, task: str) -> None:
    for sample in make(tokenizer, documents, task, 512):
        value = sample["outputs"][0]
        assert re.fullmatch(r"[1-9]\d{6}", value)
        assert prompt(sample).count(value) == 1
        needles = re.findall(r"^One of the special.* for (\S+) is: (\d+)\.$", sample["input"], re.M)
        assert len(needles) == 1
        assert needles[0][1] == value
        assert sample["prefix"].endswith(f"for {needles[0][0]} mentioned in the provided text is")


def test_depths_cover_the_haystack(tokenizer: Any, documents: Any) -> None:
    samples = make(tokenizer, documents, "niah_single_2", 1024, n=40)
    depths = [sample["depth"] for sample in samples]
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    for sample in samples:
        text = sample["input"]
        place = text.index("One of the special") / len(text)
        assert place == pytest.approx(sample["depth"], abs=0.25)


def test_samples_depend_on_nothing_else(tokenizer: Any, documents: Any) -> None:
    alone = make(tokenizer, documents, "niah_single_2", 512, n=4)
    make(tokenizer, documents, "niah_single_1", 320)
    assert make(tokenizer, documents, "niah_single_2", 512, n=7)[:4] == alone
    assert make(tokenizer, documents, "niah_single_2", 512, n=4, seed=1) != alone


def test_haystack_is_repeated_where_it_is_short(tokenizer: Any) -> None:
    sample = make(tokenizer, [("a", "Just a few words.\n")], "niah_single_2", 512, n=1)[0]
    assert sample["input"].count("few words") > 10


def test_budgets() -> None:
    assert generation_budget(4096) == ("full", 128)
    assert generation_budget(1024) == ("compact", 16)


@pytest.mark.parametrize("largest", [0, 1, 7, 1000])
@pytest.mark.parametrize("unit", [1, 7, 41])
def test_largest_fit_equals_search_one_by_one(largest: int, unit: int) -> None:
    def size(count: int) -> int:
        return 100 + unit * count + count // 3

    for room in (100, 101, 140, 500, 3000):
        wanted = max(n for n in range(largest + 1) if size(n) <= room)
        assert largest_fit(size, room, largest) == wanted


def test_needle_goes_between_sentences_of_a_single_line() -> None:
    units = ("One. ", "Two. ", "Three.")
    prose = Haystack(units, splits_lines=True)
    assert prose.insert("N.", 3, 0.5)[0] == "One. Two. N. Three."
    assert prose.insert("N.", 3, 0.0) == ("N. One. Two. Three.", 0.0)
    assert prose.insert("N.", 3, 0.99) == ("One. Two. Three. N.", 1.0)
    assert prose.insert("N.", 0, 0.5) == ("N.", 0.0)


def test_impossible_requests_are_refused(tokenizer: Any, documents: Any) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.ruler\.lengths: .* tokens longer"):
        make(tokenizer, documents, "niah_single_1", 64)
    with pytest.raises(ConfigError, match="unknown; known tasks: niah_single_1"):
        make(tokenizer, documents, "niah", 512)
    with pytest.raises(ConfigError, match="held-out documents and there are none"):
        make(tokenizer, [], "niah_single_2", 512)


def test_scores() -> None:
    def score(predictions: list[str], references: list[list[str]]) -> float:
        return ruler.score("niah_single_1", predictions, references)

    references = [["1234567"], ["7654321"]]
    assert score([" 1234567.", "it is 7654321"], references) == 100.0
    assert score(["", ""], references) == 0.0
    assert score(["1234567", "123456"], references) == 50.0
    assert score(["an APPLE and a pear"], [["Apple", "PEAR", "plum"]]) == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="argument"):
        score(["1"], references)
    with pytest.raises(ValueError, match="at least one"):
        score([], [])


def test_oracle_scores_everything(tokenizer: Any, documents: Any) -> None:
    samples = make(tokenizer, documents, "niah_single_1", 512)
    references = [sample["outputs"] for sample in samples]
    oracle = [re.findall(r"is: (\d+)\.", sample["input"])[0] for sample in samples]
    assert ruler.score("niah_single_1", oracle, references) == 100.0
    assert ruler.score("niah_single_1", [""] * len(samples), references) == 0.0
