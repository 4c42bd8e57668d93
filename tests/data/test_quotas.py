"""Exact shares of blocks and weighted draws of buckets."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable

import pytest

from longred.config import DataConfig
from longred.data.quotas import Quota, draw, least_num_tokens, share, source_quotas
from longred.errors import ConfigError


@pytest.mark.parametrize("seed", range(20))
def test_shares_add_up_and_are_exact_to_within_one(seed: int) -> None:
    rng = random.Random(seed)
    weights = [rng.random() * rng.choice((0, 1, 10)) for _ in range(5)] + [0.3]
    total = rng.randrange(10_000)
    parts = share(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1 + 1e-9


def test_shares_of_the_demo_recipe() -> None:
    assert share(2880, [0.6, 0.4, 0.0]) == [1728, 1152, 0]


def test_buckets_get_their_ratio_in_blocks(make_config: Callable[..., DataConfig]) -> None:
    quotas = source_quotas(make_config())["words"]
    needed = {quota.bucket: quota.needed for quota in quotas if quota.split == "train"}
    assert needed == {"long": 64, "short": 384, "original": 64}
    assert {quota.needed for quota in quotas if quota.split == "held_out"} == {8, 64, 32}


def test_too_few_tokens_for_a_block(make_config: Callable[..., DataConfig]) -> None:
    with pytest.raises(ConfigError, match=r"data\.num_tokens: 500 gives the long bucket 250"):
        source_quotas(make_config(num_tokens=500))


def test_practice_too_short_for_its_bucket(make_config: Callable[..., DataConfig]) -> None:
    sources = [{"name": "practice", "kind": "practice", "length": 48}]
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.length: texts of 48 tokens"):
        source_quotas(make_config(sources=sources))


def test_draws_follow_what_is_still_needed() -> None:
    quotas = [Quota("train", "long", 10, 5, 60), Quota("train", "short", 2, 2, 100)]
    drawn: Counter[str] = Counter()
    for number in range(4000):
        word = int(hashlib.sha256(str(number).encode()).hexdigest()[:16], 16)
        quota = draw(word, 100, quotas)
        assert quota
        drawn[quota.bucket] += 1
    assert drawn["long"] / 4000 == pytest.approx(600 / 800, abs=0.03)


def test_a_document_is_drawn_only_where_it_is_long_enough_and_needed() -> None:
    long, short = Quota("train", "long", 10, 5, 1), Quota("train", "short", 2, 2, 1)
    document = 2**64 - 1
    assert draw(document, 4, [long, short]) is short
    assert draw(document, 1, [long, short]) is None
    short.written = 1
    assert draw(document, 9, [long, short]) is long
    long.pending = 10
    assert draw(document, 9, [long, short]) is None


def test_budgets_are_exact_and_the_rest_is_shared(make_config: Callable[..., DataConfig]) -> None:
    def source(name: str, **settings: object) -> dict[str, object]:
        return {"name": name, "kind": "files", "path": name, **settings}

    sources = [source("a", num_tokens=8192), source("b", weight=3), source("c")]
    needed = {
        name: {q.bucket: q.needed for q in quotas if q.split == "train"}
        for name, quotas in source_quotas(make_config(sources=sources)).items()
    }
    assert needed == {
        "a": {"long": 16, "short": 96, "original": 16},
        "b": {"long": 36, "short": 216, "original": 36},
        "c": {"long": 12, "short": 72, "original": 12},
    }
    only = {"buckets": {"short": 1}}
    sources = [source("a", num_tokens=4096, **only), source("b")]
    quotas = source_quotas(make_config(sources=sources))
    assert [q.needed for q in quotas["a"] if q.split == "train"] == [0, 128, 0]
    sources = [source("a", num_tokens=16384), source("b", num_tokens=16384)]
    quotas = source_quotas(make_config(sources=sources))
    assert [q.needed for q in quotas["b"] if q.split == "train"] == [32, 192, 32]


@pytest.mark.parametrize("budgets", [(8192, 8192), (65536, None)])
def test_budgets_that_do_not_add_up(
    make_config: Callable[..., DataConfig], budgets: tuple[int, int | None]
) -> None:
    sources = [
        {"name": f"s{n}", "kind": "files", "path": str(n), "num_tokens": budget}
        for n, budget in enumerate(budgets)
    ]
    with pytest.raises(ConfigError, match=r"data\.sources: budgets .* give the long bucket"):
        source_quotas(make_config(sources=sources))


def test_a_bucket_of_zero_gets_no_block(make_config: Callable[..., DataConfig]) -> None:
    """32,768 tokens at 3:1:0: 24,576 long ones in blocks of 256, 8,192 short ones in 32."""
    config = make_config(ratio={"long": 3, "short": 1, "original": 0})
    needed = {(q.split, q.bucket): q.needed for q in source_quotas(config)["words"]}
    assert needed == {
        ("train", "long"): 96,
        ("train", "short"): 256,
        ("train", "original"): 0,
        ("held_out", "long"): 8,
        ("held_out", "short"): 64,
        ("held_out", "original"): 0,
    }


@pytest.mark.parametrize("buckets", [{"long": 1.0}, {"long": 1.0, "short": 0.5}])
def test_short_blocks_are_held_out_whatever_is_trained(
    buckets: dict[str, float], make_config: Callable[..., DataConfig]
) -> None:
    """Profiling and evaluation read them."""
    sources = [{"name": "a", "kind": "files", "path": "a", "buckets": buckets}]
    config = make_config(sources=sources, ratio={"long": 1, "short": 0, "original": 0})
    needed = {(q.split, q.bucket): q.needed for q in source_quotas(config)["a"]}
    assert needed["train", "short"] == 0
    assert needed["held_out", "short"] == 64
    assert least_num_tokens(config) == 256


@pytest.mark.parametrize("seed", range(5))
def test_the_least_tokens_give_every_bucket_a_block(
    seed: int, make_config: Callable[..., DataConfig]
) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        ratio = {bucket: rng.randrange(5) for bucket in ("long", "short", "original")}
        ratio["long"] += not any(ratio.values())
        least = least_num_tokens(make_config(ratio=ratio))
        source_quotas(make_config(ratio=ratio, num_tokens=least))
        with pytest.raises(ConfigError, match=f"give at least {least}$"):
            source_quotas(make_config(ratio=ratio, num_tokens=least - 1))
