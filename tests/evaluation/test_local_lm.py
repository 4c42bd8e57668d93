"""`LocalLM` tokenises, scores and ends answers as lm-eval does."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from longred.evaluation import local_lm
from longred.evaluation.counting import encode
from longred.evaluation.lm import TransformersLM
from longred.evaluation.local_lm import LocalLM, Request
from longred.models.load import load_model, load_tokenizer

TEXTS = ["", "import json", "import json ", "def f(x):\n    ", "  ", "a b"]


@pytest.fixture(scope="module")
def lms(tiny_model_folder: Path) -> tuple[LocalLM, Any]:
    model = load_model(tiny_model_folder)
    local, theirs = (
        kind(model, load_tokenizer(tiny_model_folder), max_tokens=64)
        for kind in (LocalLM, TransformersLM)
    )
    return local, theirs


@pytest.mark.parametrize("context", [text for text in TEXTS if text.strip()])
@pytest.mark.parametrize("rest", [" return", "return", "\n", "x"])
def test_pairs_are_split_as_in_lm_eval(lms: tuple[LocalLM, Any], context: str, rest: str) -> None:
    local, theirs = lms
    assert local._encode_pair(context, rest) == TemplateLM._encode_pair(theirs, context, rest)


def test_likelihoods_are_those_of_lm_eval(
    lms: tuple[LocalLM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    local, theirs = lms
    pairs = [(context, rest) for context in TEXTS if context != "  " for rest in (" return", "x")]
    found = local.loglikelihood([Request(pair, n) for n, pair in enumerate(pairs)])
    monkeypatch.setattr(TransformersLM, "_encode_pair", TemplateLM._encode_pair)
    instances = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    assert found == TemplateLM.loglikelihood(theirs, instances, disable_tqdm=True)


def test_answers_are_those_of_the_lm_of_lm_eval(lms: tuple[LocalLM, Any]) -> None:
    local, theirs = lms
    settings = [
        {"until": [], "do_sample": False, "max_gen_toks": 6},
        {"until": ["e", "\n"], "do_sample": False, "max_gen_toks": 12},
    ]
    asked = [(text, values) for values in settings for text in ("import json", "a b", "")]
    found = local.generate_until([Request(args, n) for n, args in enumerate(asked)])
    instances = [Instance("generate_until", {}, args, n) for n, args in enumerate(asked)]
    assert found == theirs.generate_until(instances)
    assert local.endings == theirs.endings


def test_many_texts_are_tokenised_together_as_one_by_one(
    lms: tuple[LocalLM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    local, _ = lms
    texts = [*TEXTS, "<|bos|>x", "word " * 50]
    sizes: list[int] = []
    tokenizer = local.tokenizer

    class Counted:
        """The tokenizer, counting the texts of each call."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: list[str], **settings: Any) -> Any:
            sizes.append(len(texts))
            return tokenizer(texts, **settings)

    for in_chat in (False, True):
        monkeypatch.setattr(local, "in_chat", in_chat)
        alone = [local.tok_encode(text) for text in texts]
        with monkeypatch.context() as patch:
            patch.setattr(local, "tokenizer", Counted())
            patch.setattr(local_lm, "GROUP_CHARACTERS", 60)
            assert list(local.encode_all(texts)) == alone
        if not in_chat:
            assert alone == [encode(tokenizer, text) for text in texts]
    assert sizes == [len(TEXTS) + 1, 1] * 2
    assert list(local.encode_all([])) == []
