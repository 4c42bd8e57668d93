from typing import get_args

import pytest
import yaml

from longred.config import (
    ExtensionConfig,
    RunConfig,
    SelectionConfig,
    TrainingConfig,
    load_recipe,
)
from longred.errors import ConfigError
from longred.method.methods import METHODS, MethodName
from longred.method.rope import ROPE_METHODS
from longred.recipes import RECIPES


def test_step_of_the_demo_is_exactly_four_to_three_to_one():
    training = load_recipe("demo").training
    assert training.rows("longred-c") == {"long": 4, "short": 24, "original": 4}
    assert training.rows("cpt") == {"long": 8}
    tokens = {b: n * training.block_lengths()[b] for b, n in training.rows("longred-c").items()}
    assert tokens == {"long": 4096, "short": 3072, "original": 1024}


def test_paper_step_is_two_million_tokens():
    training = load_recipe("llama3-8b-32k").training
    assert training.rows("longred-c") == {"long": 32, "short": 768, "original": 32}


def test_shared_values_reach_the_sections_that_use_them():
    config = load_recipe("demo", ["target_window=2048", "seed=3", "training.step_tokens=16384"])
    assert config.training.target_window == config.data.target_window == 2048
    assert config.extension.original_window == 256
    assert config.training.seed == config.data.seed == config.evaluation.seed == 3
    assert config.training.short_length == config.data.short_length


def test_runtime_fields_stay_out_of_the_digest():
    plain = load_recipe("demo")
    moved = load_recipe(
        "demo", ["store.path=/elsewhere", "training.save_every_steps=3", "training.device=cpu"]
    )
    for name in RunConfig.model_fields:
        section, other = getattr(plain, name), getattr(moved, name)
        if hasattr(section, "digest_values"):
            assert section.digest_values() == other.digest_values(), name
    changed = load_recipe("demo", ["training.learning_rate=1e-4"])
    assert changed.training.digest_values() != plain.training.digest_values()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.lerning_rate=1", ["training.lerning_rate: unknown key", "learning_rate"]),
        ("evaluation.ruler.lenghts=[1]", ["evaluation.ruler.lenghts: unknown key", "lengths"]),
        ("traning.num_steps=1", ["traning: unknown key", "training"]),
        ("training.num_steps=abc", ["training.num_steps:", "whole number"]),
        ("training.num_steps=0", ["training.num_steps:", "1 or more"]),
        ("training.learning_rate=.nan", ["training.learning_rate:"]),
        ("training.learning_rate=.inf", ["training.learning_rate:"]),
        ("training.method=sft", ["training.method:", "longred-c"]),
        ("training.step_tokens=8000", ["training.step_tokens:", "8192"]),
        ("training.seed=4", ["training.seed:", "set seed instead"]),
        ("training.baselines=[longred-c]", ["training.baselines:"]),
        ("data.short_length=200", ["data.short_length:", "half of original_window"]),
        ("data.ratio={long: 1}", ["data.ratio:", "long, short and original"]),
        ("data.ratio={lnog: 1}", ["data.ratio.lnog"]),
        ("data.ratio.long=-1", ["data.ratio.long:"]),
        ("data.sources=[]", ["data.sources:"]),
        ("data.sources.0.kind=web", ["data.sources.0.kind:", "library"]),
        ("data.sources.9.kind=web", ["data.sources.9.kind", "items"]),
        ("data.sources.0.buckets.long=0", ["data.sources:", "long bucket"]),
        ("target_window=128", ["target_window:", "larger than original_window"]),
        ("target_window=8192", ["target_window:", "longred-c", "use target_window=4096"]),
        ("training.short_distill_weight=-1", ["training.short_distill_weight:", "-1"]),
        ("training.long_distill_weight=-0.5", ["training.long_distill_weight:", "-0.5"]),
        ("training.sigma=0", ["training.sigma:", "above 0"]),
        ("training.merge_weight=1.5", ["training.merge_weight:", "from 0 to 1"]),
        ("training.lora.rank=0", ["training.lora.rank:", "1 or more"]),
        ("training.lora.targets=[]", ["training.lora.targets:"]),
        ("training.lora.dropout=0.1", ["training.lora.dropout: unknown key"]),
        ("selection.layers=[1]", ["selection.layers:", "manual"]),
        ("evaluation.ruler.lengths=[4096]", ["evaluation.ruler.lengths:", "target_window"]),
        ("training", ["training:", "training=VALUE"]),
        ("seed.x=1", ["seed.x:", "value"]),
    ],
)
def test_bad_override_names_the_dotted_key(override, parts):
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [override])
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_windows_on_the_way_are_runs_of_their_own():
    nearest = "{target_window: 384, rope_theta: 2e4, num_steps: 5}"
    way = f"extension.windows=[{nearest}, {{target_window: 512, rope_theta: 4e4}}]"
    config = load_recipe("demo", [way, "training.step_tokens=24576"])
    first, second = config.windows()
    for run, window in ((first, 384), (second, 512), (config, 1024)):
        sections = (run, run.extension, run.data, run.training)
        assert {section.target_window for section in sections} == {window}
    assert [run.extension.rope_theta for run in (first, second, config)] == [2e4, 4e4, 1.6e5]
    assert [run.training.num_steps for run in (first, second, config)] == [5, 60, 60]
    assert first.training.rows("longred-c") == {"long": 32, "short": 72, "original": 12}
    assert first.windows() == load_recipe("demo").windows() == []


@pytest.mark.parametrize(
    ("windows", "overrides", "parts"),
    [
        ("{target_window: 256, rope_theta: 2e4}", [], ["windows.0.target_window: 256", "between"]),
        ("{target_window: 1024, rope_theta: 2e4}", [], ["windows.0.target_window: 1024"]),
        ("{target_window: 512}", [], ["windows.0.rope_theta: give a theta", "rule"]),
        ("{target_window: 512, rope_theta: 2e4, steps: 1}", [], ["windows.0.steps: unknown key"]),
        ("{target_window: 500, rope_theta: 2e4}", [], ["windows.0: at", "training.step_tokens"]),
        (
            "{target_window: 512, rope_theta: 2e4}",
            ["extension.method=pi", "extension.rope_theta=null"],
            ["windows.0.rope_theta: only methods abf and cope read it"],
        ),
        (
            "{target_window: 512, rope_theta: 2e4}",
            ["training.baselines=[lora]"],
            ["extension.windows: method lora", "merged model"],
        ),
    ],
)
def test_windows_that_cannot_work_are_refused(windows, overrides, parts):
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [f"extension.windows=[{windows}]", *overrides])
    for part in parts:
        assert part in str(caught.value)


MIXED = ["extension.method=longrope", "extension.rope_theta=null"]
MIXED.append("extension.short_factor=original")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.method=pose"], "with method pose rows would end on both sides"),
        (["training.baselines=[pose-anywhere]"], "with method pose-anywhere rows would end"),
        (["training.method=recalibrate"], "recalibrate reads no row beyond original_window"),
        (
            ["training.method=mix-cpt", "data.ratio={long: 0, short: 3, original: 1}"],
            "mix-cpt reads no row beyond original_window",
        ),
        (["training.method=attention-distill"], "attention-distill reads no row beyond original"),
    ],
)
def test_mixed_windows_refuse_methods_that_do_not_reach_beyond_or_only_at_times(overrides, words):
    with pytest.raises(ConfigError, match=rf"extension\.short_factor: .*{words}"):
        load_recipe("demo", [*MIXED, *overrides])


@pytest.mark.parametrize("method", ["longred-c", "longred-u", "cpt", "mix-cpt", "cream", "merge"])
def test_mixed_windows_allow_methods_that_reach_beyond(method):
    config = load_recipe("demo", [*MIXED, f"training.method={method}", "training.baselines=[]"])
    assert config.extension.settings() == {"short_factor": "original"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "method abf has no factors to search for; set extension.method=longrope"),
        ([*MIXED[:2], f"extension.long_factor={[1.0] * 16}"], "long_factor gives the factors"),
        ([*MIXED, "extension.windows=[{target_window: 512}]"], "use it without extension.windows"),
        (["extension.search.population=1"], "population: must be a whole number of 2 or more"),
    ],
)
def test_a_search_for_factors_that_cannot_work_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=rf"extension\.search.*{words}"):
        load_recipe("demo", ["extension.search.num_rounds=2", *overrides])


def test_settings_of_later_versions_stay_out_of_digests_until_they_are_set():
    plain = load_recipe("demo").extension.digest_values()
    assert not {"short_factor", "num_clipped", "search"} & set(plain)
    searched = load_recipe("demo", [*MIXED, "extension.search.num_rounds=2"]).extension
    assert searched.digest_values()["search"] == {
        "num_rounds": 2,
        "population": 12,
        "num_rows": 4,
        "seed": 0,
    }
    assert plain["beta_fast"] is None
    cope = load_recipe("demo", ["extension.method=cope", "extension.num_clipped=4"])
    assert cope.extension.digest_values()["num_clipped"] == 4


@pytest.mark.parametrize("objectives", ["merge", "lora"])
def test_adapters_on_a_merged_model_are_refused(objectives):
    overrides = ["training.method=lora", f"training.lora.objectives={objectives}"]
    with pytest.raises(ConfigError, match=r"training\.lora\.objectives: .*merged model"):
        load_recipe("demo", overrides)


def test_adapters_and_a_choice_of_weights_are_refused_together():
    with pytest.raises(ConfigError, match=r"training\.trained: attention selects weights"):
        load_recipe("demo", ["training.baselines=[lora]", "training.trained=attention"])
    carried = ["training.method=lora", "training.lora.objectives=attention-only"]
    with pytest.raises(ConfigError, match=r"training\.lora\.objectives: attention-only trains"):
        load_recipe("demo", carried)


def test_long_rows_are_not_shared_if_pose_cuts_them():
    shared = ["training.parallel.num_processes=2", "training.parallel.sequence_parallel=2"]
    shared.append("training.step_tokens=16384")
    message = r"training\.parallel\.sequence_parallel: 2 processes would share .* pose .*use 1"
    for pose in ("training.baselines=[pose]", "training.method=pose"):
        with pytest.raises(ConfigError, match=message):
            load_recipe("demo", [*shared, pose])
    load_recipe("demo", [*shared, "training.baselines=[pose-anywhere]"])


def test_texts_that_are_no_longer_than_the_judges_context_are_refused():
    lengths = "evaluation.perplexity.lengths=[256, 512]"
    judged = [lengths, "evaluation.perplexity.judge=demo"]
    with pytest.raises(ConfigError, match=r"perplexity\.lengths: \[256\] .*\(256\)"):
        load_recipe("demo", judged)
    load_recipe("demo", [lengths])
    load_recipe("demo", [*judged, "evaluation.perplexity.short_context=128"])


def test_bad_key_in_a_file_names_the_line(tmp_path):
    values = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    values["training"]["lerning_rate"] = 1
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    line = next(
        i for i, text in enumerate(path.read_text().splitlines(), 1) if "lerning_rate" in text
    )
    with pytest.raises(
        ConfigError, match=rf"training\.lerning_rate: unknown key.*mine\.yaml:{line}\)"
    ):
        load_recipe(path)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", ""])
def test_file_that_is_not_a_recipe(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_recipe(path)


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(ConfigError, match="did you mean demo"):
        load_recipe("dmo")


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_packaged_recipes_are_valid(name):
    assert load_recipe(name).name == name


def test_names_that_a_recipe_may_use_are_those_of_the_tables():
    from longred.method import positions, selection
    from longred.objectives.table import WEIGHTINGS

    def allowed(section, field):
        return set(get_args(section.model_fields[field].annotation))

    assert set(get_args(MethodName)) == set(METHODS)
    assert allowed(ExtensionConfig, "method") == set(ROPE_METHODS)
    assert allowed(SelectionConfig, "strategy") == set(selection.STRATEGIES)
    assert allowed(TrainingConfig, "weighting") == set(WEIGHTINGS)
    assert {method.positions for method in METHODS.values()} <= {None, *positions.SKIPPERS}
