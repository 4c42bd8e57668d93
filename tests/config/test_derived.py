"""Defaults that follow from the windows and the text."""

import random
from fractions import Fraction

import pytest

from longred.config import RunConfig, load_recipe
from longred.config.derived import DERIVED, doubled, step_unit
from longred.errors import ConfigError
from longred.method.layout import Layout
from longred.method.methods import METHODS, method_terms


def make(**changes):
    values = {
        "name": "own",
        "original_window": 4096,
        "target_window": 16384,
        "data": {
            "num_tokens": 200_000_000,
            "sources": [{"name": "own", "kind": "files", "path": "text"}],
        },
    }
    return RunConfig.model_validate({**values, **changes})


@pytest.mark.parametrize("original", [64, 200, 256, 300, 2048, 4096, 8192, 32768])
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("num_tokens", [3_000_000, 10**9])
def test_a_recipe_without_these_settings_works_on_any_window(original, factor, num_tokens):
    target = factor * original
    data = {"num_tokens": num_tokens, "sources": [{"name": "own", "kind": "library"}]}
    config = make(original_window=original, target_window=target, data=data)
    assert config.data.short_length == min(1024, original // 2)
    lengths = config.evaluation.ruler.lengths
    assert (lengths[0], lengths[-1]) == (original, target)
    step, steps = config.training.step_tokens, config.training.num_steps
    unit = step_unit(
        config.training.block_lengths(), config.data.ratio, {"longred-c": ""}, Layout()
    )
    assert step % unit == 0
    assert step <= max(2**21, unit)
    assert steps == max(1, num_tokens // step)
    assert steps >= 64 or step == unit


def test_a_file_gets_the_same_defaults_as_plain_values(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\noriginal_window: 512\ntarget_window: 4096\n"
        "data:\n  num_tokens: 3000000\n  ratio: {long: 2, short: 1, original: 1}\n"
        "  sources: [{name: own, kind: library}]\n"
        "extension:\n  windows: [{target_window: 2048}]\n"
        "training:\n  parallel: {num_processes: 2}\n"
    )
    data = {
        "num_tokens": 3_000_000,
        "ratio": {"long": 2, "short": 1, "original": 1},
        "sources": [{"name": "own", "kind": "library"}],
    }
    plain = make(
        original_window=512,
        target_window=4096,
        data=data,
        extension={"windows": [{"target_window": 2048}]},
        training={"parallel": {"num_processes": 2}},
    )
    config = load_recipe(path)
    assert config.model_dump() == plain.model_dump()
    assert config.data.short_length == 256
    assert config.evaluation.ruler.lengths == [512, 1024, 2048, 4096]


def test_given_settings_are_kept():
    config = make(
        training={"step_tokens": 2**18, "num_steps": 7}, evaluation={"ruler": {"lengths": [4096]}}
    )
    assert (config.training.step_tokens, config.training.num_steps) == (2**18, 7)
    assert config.evaluation.ruler.lengths == [4096]
    assert make(training={"step_tokens": 2**18}).training.num_steps == 200_000_000 // 2**18
    assert make(training={"num_steps": 7}).training.num_steps == 7


@pytest.mark.parametrize(
    ("windows", "baselines"),
    [([6144, 10240], ["cpt", "pose"]), ([], ["cpt", "lora", "attention-distill"])],
)
def test_steps_divide_at_every_window_and_over_every_process(windows, baselines):
    config = make(
        extension={"windows": [{"target_window": window} for window in windows]},
        training={"parallel": {"num_processes": 6}, "baselines": baselines},
    )
    for at_window in [*config.windows(), config]:
        for method in config.training.methods():
            assert all(rows % 6 == 0 for rows in at_window.training.rows(method).values())


def test_a_recipe_file_whose_numbers_are_text_gets_the_same_defaults(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\noriginal_window: 256\ntarget_window: 1_024\n"
        "extension: {windows: [{target_window: 512}]}\n"
        "training: {parallel: {num_processes: 3}}\n"
        "data:\n  num_tokens: 3_000_000\n  ratio: {long: 2, short: 1, original: 1}\n"
        "  sources: [{name: own, kind: library}]\n"
    )
    config = load_recipe(path)
    same = make(
        original_window=256,
        target_window=1024,
        extension={"windows": [{"target_window": 512}]},
        training={"parallel": {"num_processes": 3}},
        data={
            "num_tokens": 3_000_000,
            "ratio": {"long": 2, "short": 1, "original": 1},
            "sources": [{"name": "own", "kind": "library"}],
        },
    )
    assert config == same
    assert config.data.short_length == 128
    assert config.training.step_tokens * config.training.num_steps <= 3_000_000
    assert load_recipe(path, ["training.step_tokens=12288"]).training.num_steps == 244


def test_lengths_double_up_to_the_target_window():
    assert doubled(4096, 16384) == [4096, 8192, 16384]
    assert doubled(300, 1000) == [300, 600, 1000]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training": {"method": 3}}, "training.method"),
        ({"training": {"baselines": [["cpt"]]}}, "training.baselines"),
        ({"training": {"parallel": {"num_processes": "two"}}}, "training.parallel"),
        ({"training": {"lora": {"objectives": []}}}, "training.lora"),
        ({"training": []}, "training"),
        ({"data": {"num_tokens": 10**9, "ratio": {"long": 0}, "sources": []}}, "data"),
        ({"data": {"num_tokens": "many", "sources": []}}, "data.num_tokens"),
        ({"extension": {"windows": 5}}, "extension.windows"),
        ({"extension": {"windows": [{"target_window": "x"}]}}, "extension.windows"),
        ({"evaluation": {"ruler": 4}}, "evaluation.ruler"),
        ({"original_window": "8K"}, "original_window"),
    ],
)
def test_wrong_values_reach_validation(changes, key):
    with pytest.raises((ValueError, ConfigError)) as caught:
        make(**changes)
    assert key in str(caught.value)


def test_the_unit_is_the_smallest_step_that_works():
    draw = random.Random(0)
    for _ in range(200):
        buckets = ("long", "short", "original")
        lengths = {bucket: draw.randint(1, 6) for bucket in buckets}
        ratio = {bucket: draw.randint(1, 5) for bucket in buckets}
        names = draw.sample([name for name, method in METHODS.items() if method.terms], 2)
        processes = draw.randint(1, 3)
        layout = Layout(num_processes=processes)

        def works(step, lengths=lengths, ratio=ratio, names=names, processes=processes):
            for name in names:
                used = method_terms(name, "longred-c").buckets()
                whole = sum(ratio[bucket] for bucket in used)
                for bucket in used:
                    rows = Fraction(step * ratio[bucket], whole * lengths[bucket] * processes)
                    if rows.denominator != 1:
                        return False
            return True

        unit = step_unit(lengths, ratio, dict.fromkeys(names, "longred-c"), layout)
        assert unit == next(step for step in range(1, unit + 1) if works(step))


def test_every_derived_default_is_said():
    config = make().model_dump()
    for key, words in DERIVED.items():
        section: object = config
        for part in key.split("."):
            section = section[part]
        assert words


def test_short_tasks_do_not_grow_with_the_models_window():
    """The demo's prompts fill its model's 256 tokens; at 8,192 eight of them took minutes."""
    for original, tokens in ((256, 256), (8192, 1024)):
        config = make(original_window=original, target_window=2 * original).evaluation
        assert (config.local_window, config.text_window) == (tokens, original)
    asked = make(original_window=8192, evaluation={"short_window": 2048}).evaluation
    assert (asked.local_window, asked.text_window) == (2048, 2048)
