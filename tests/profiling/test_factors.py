"""Needles in rows of tokens, their perplexity, and the search for factors that lowers it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longred.config import ExtensionConfig
from longred.config.model import SearchConfig
from longred.errors import ConfigError, NonFiniteLossError
from longred.method.factor_search import num_scored
from longred.models.load import load_model, load_tokenizer, resolve_model
from longred.profiling import factors as module
from longred.profiling.factors import search_factors
from longred.profiling.needles import NUM_NEEDLES, NeedleRows, hide_needles, needle_perplexity
from longred.profiling.passage import PASSAGE
from longred.stages import extend_model
from longred.store.artifacts import Artifact, Store

WINDOWS = {"original_window": 64, "target_window": 384}
SEARCH = {"num_rounds": 3, "population": 4, "seed": 5}
HAY = [7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def rows(tiny_model_folder: Path) -> NeedleRows:
    tokenizer = load_tokenizer(tiny_model_folder)
    return hide_needles(
        HAY,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        length=384,
        num_rows=3,
        seed=1,
    )


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    loaded = load_model(tiny_model_folder)
    with torch.no_grad():
        for layer in loaded.base_model.layers:
            layer.self_attn.q_proj.weight.mul_(30)
    return loaded


def test_every_answer_is_hidden_before_it_is_asked_for(
    rows: NeedleRows, tiny_model_folder: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    assert rows.input_ids_NT.shape == rows.is_answer_NT.shape == (3, 384)
    told = set()
    for ids, marks in zip(*(each.tolist() for each in rows), strict=True):
        answers, at = [], 0
        while at < len(marks):
            end = at
            while end < len(marks) and marks[end]:
                end += 1
            if end > at:
                answers.append((at, tokenizer.decode(ids[at:end])))
            at = end + 1
        assert len(answers) == NUM_NEEDLES
        assert answers[-1][0] > 300
        text = tokenizer.decode(ids)
        for _, answer in answers:
            assert answer.startswith(" ")
            assert answer.endswith(".")
            (fact,) = {
                text[max(0, i - 30) : i].rpartition("\n")[2]
                for i in range(len(text))
                if text.startswith(answer, i)
            }
            assert fact.startswith("The code of the ")
            assert text.count(f"{fact}{answer}") == 2
            told.add(answer)
        # One fact in every quarter of the haystack.
        places = [text.index(answer) / len(text) for _, answer in answers]
        assert max(places) - min(places) > 0.3
    assert len(told) == 3 * NUM_NEEDLES


def test_rows_are_drawn_by_seed_and_text_goes_round(tiny_model_folder: Path) -> None:
    def encode(text: str) -> list[int]:
        return [400 + ord(letter) % 50 for letter in text]

    one, same, other = (
        hide_needles(HAY, encode, length=600, num_rows=2, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.input_ids_NT, same.input_ids_NT)
    assert not torch.equal(one.input_ids_NT, other.input_ids_NT)
    hay = [token for token in one.input_ids_NT[0].tolist() if token < 100]
    start = HAY.index(hay[0])
    assert hay == [HAY[(start + i) % len(HAY)] for i in range(len(hay))]
    with pytest.raises(ConfigError, match=r"extension\.search: 4 needles .* search at a longer"):
        hide_needles(HAY, encode, length=200, num_rows=1, seed=1)


def test_perplexity_is_that_of_the_answers_alone(model: Any, rows: NeedleRows) -> None:
    nats, count = 0.0, 0
    for ids, marks in zip(*rows, strict=True):
        with torch.no_grad():
            logits = model(ids[None]).logits[0].double()
        law = logits.log_softmax(-1)
        for place in np.flatnonzero(marks.numpy()):
            nats -= law[place - 1, ids[place]].item()
            count += 1
    assert needle_perplexity(model, rows) == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_a_model_that_computes_nothing_is_told(model: Any, rows: NeedleRows) -> None:
    weight = model.base_model.norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(NonFiniteLossError, match=r"extension\.search: .*not a number"):
            needle_perplexity(model, rows)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_search_that_was_stopped_goes_on(
    mixed: bool, model: Any, rows: NeedleRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"short_factor": "original"} if mixed else {}
    given = {"windows": WINDOWS, "settings": settings, "work": tmp_path, **SEARCH}
    real, asked = needle_perplexity, []

    def counted(student: Any, its_rows: NeedleRows) -> float:
        asked.append(student.config.rope_parameters["long_factor"])
        if len(asked) == 6:
            raise KeyboardInterrupt
        return real(student, its_rows)

    monkeypatch.setattr(module, "needle_perplexity", counted)
    with pytest.raises(KeyboardInterrupt):
        search_factors(model, rows, **given)
    assert len(json.loads((tmp_path / "scores.json").read_text())) == 5
    seen: list[tuple[int, int, str]] = []
    found = search_factors(model, rows, **given, on_progress=lambda *a: seen.append(a))
    assert len(asked) == num_scored(3, 4) + 1 == found.num_scored + 1
    assert seen[-1] == (10, 10, "candidates")
    monkeypatch.setattr(module, "needle_perplexity", real)
    (tmp_path / "scores.json").unlink()
    assert search_factors(model, rows, **given) == found
    assert found.perplexity == min(found.best_by_round) <= found.perplexity_by_ntk_rule
    assert found.long_factor == sorted(found.long_factor)
    assert found.long_factor in asked


@pytest.fixture(scope="module")
def demo() -> Path:
    return resolve_model("demo")


@pytest.fixture(scope="module")
def data(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Held-out rows of one passage."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "held_out").mkdir()
    tokens = np.array(load_tokenizer(demo)(PASSAGE)["input_ids"])
    rows = np.resize(tokens, (20, 128))
    rows.astype("<u2").tofile(folder / "held_out/short.bin")
    file = {"dtype": "uint16", "file": "held_out/short.bin"}
    held_out = {"short": {"block_length": 128, "num_blocks": 20, **file}}
    index = {"format_version": 1, "train": {}, "held_out": held_out}
    (folder / "index.json").write_text(json.dumps(index))
    return Artifact("data", "d", str(folder))


def settings(target_window: int, **search: Any) -> ExtensionConfig:
    windows = {"original_window": 256, "target_window": target_window}
    given = {"num_rounds": 2, "population": 4, "num_rows": 2, "device": "cpu", **search}
    return ExtensionConfig(method="longrope", search=SearchConfig(**given), **windows)


@pytest.mark.medium
def test_the_stage_writes_factors_that_read_better(
    demo: Path, data: Artifact, tmp_path: Path
) -> None:
    base, store = Artifact("model", "m", str(demo)), Store(tmp_path)
    made = extend_model(settings(384), base, data=data, store=store)
    search, written = made.read_json("extension.json")["search"], made.read_json("config.json")
    assert search["long_factor"] == written["rope_parameters"]["long_factor"]
    assert search["num_scored"] == num_scored(2, 4)
    # Seven tokens an answer: a space, five digits, a full stop.
    assert search["perplexity_by_guessing"] == pytest.approx(90_000 ** (1 / 7))
    assert search["perplexity"] < 0.9 * search["perplexity_by_ntk_rule"]
    assert search["perplexity"] < 2 < search["perplexity_by_guessing"]
    assert extend_model(settings(384), base, data=data, store=store).reused
    with pytest.raises(ConfigError, match=r"no factors let the untrained model .* arbitrary"):
        extend_model(settings(2048, num_rounds=1, population=2), base, data=data, store=store)


def test_data_count_only_for_a_search(data: Artifact, demo: Path, tmp_path: Path) -> None:
    base, store = Artifact("model", "m", str(demo)), Store(tmp_path)
    plain = settings(384, num_rounds=0)
    with_text, without = (extend_model(plain, base, data=d, store=store) for d in (data, None))
    assert with_text.digest == without.digest
    assert "search" not in without.read_json("extension.json")
    with pytest.raises(ValueError, match="needs the data"):
        extend_model(settings(384), base, store=store)
