"""What is said about wrong settings: one message each, in plain words, with the way out."""

from pathlib import Path

import pytest

from longred.config import EvaluationConfig, RunConfig, load_recipe, load_recorded
from longred.config.keys import PATTERNS, all_keys, kind_of, settings_named
from longred.config.section import Section
from longred.errors import ConfigError
from longred.recipes import RECIPES

METHODS = (
    "longred-c, longred-u, cpt, mix-cpt, attention-only, cream, pose, "
    "pose-anywhere, merge, lora, attention-distill, logit-distill, "
    "recalibrate, recalibrate-distill"
)


def refusal(*overrides: str, recipe: str | Path = "demo") -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Numbers.
        ("training.num_steps=abc", "must be a whole number of 1 or more, got abc"),
        ("training.num_steps=0", "must be a whole number of 1 or more, got 0"),
        ("training.num_steps=", "must be a whole number of 1 or more, got null"),
        ("training.num_steps=true", "must be a whole number of 1 or more, got true"),
        ("training.num_steps=1.5", "must be a whole number of 1 or more, got 1.5"),
        ("training.num_steps=1e3", "must be a whole number of 1 or more, got 1e3; write 1000"),
        ("training.num_steps=2,000", "must be a whole number of 1 or more, got 2,000; write 2000"),
        ("training.num_steps=2k", "must be a whole number of 1 or more, got 2k; write 2048"),
        (
            "training.num_steps=1:30",
            "must be a whole number of 1 or more, got 1:30; write it without a colon",
        ),
        ("training.num_steps=2001-99-99", "must be a whole number of 1 or more, got 2001-99-99"),
        ("training.num_steps=" + "9" * 4000, "must be less than 1,000,000,000,000,000, got a num"),
        ("training.num_steps=" + "9" * 5000, "must be a whole number of 1 or more, got 999999999"),
        ("training.learning_rate=.inf", "must be a number above 0, got .inf"),
        ("training.learning_rate=1e400", "must be a number above 0, got 1e400"),
        ("selection.share=2", "must be a number above 0 and at most 1, got 2"),
        ("data.max_rejected_fraction=1", "must be a number of 0 or more and below 1, got 1"),
        ("data.executor.max_tasks=2000", "must be a whole number from 1 to 1000, got 2000"),
        ("training.sigma=x", "must be a number above 0 or null, got x"),
        # Names.
        (
            "training.method=longredc",
            f"must be one of {METHODS}, got longredc; did you mean longred-c or longred-u?",
        ),
        (
            "training.method=Longred_C",
            f"must be one of {METHODS}, got Longred_C; did you mean longred-c?",
        ),
        ("data.sources.0.kind=web", "must be one of library, practice, files, hub, got web"),
        ("training.fused=maybe", "must be true or false, got maybe"),
        ("name=A b", "must be text of lower-case letters, digits, ., _ and -, first a letter or"),
        ("name=" + "a" * 300, "has 300 characters; the most are 100"),
        ("data.sources.0.name=" + "a" * 300, "has 300 characters; the most are 100"),
        ("model.path=" + "a" * 300, "has a part of 300 bytes; names of files have at most 255"),
        ("report.title=" + "a" * 5000, "has 5,000 characters; the most are 4,096"),
        ("report.title=a: b", "must be text, got {a: b}; put text with such characters in quotes"),
        # Lists and groups.
        ("training.baselines=cpt", f"must be a list, each one of {METHODS}, got cpt; write [cpt]"),
        (
            "training.betas=[0.9]",
            "must be a list of 2 items, each a number of 0 or more and below 1, got [0.9]",
        ),
        ("data.sources=[]", "must be a list of 1 or more items, each a group of settings with"),
        ("extension.windows.0.num_steps=1", "must be a list, each a group of settings with"),
        ("training=1", "must be a group of settings, got 1"),
        ("data=null", "must be a group of settings with sources, num_tokens, got null"),
        ("data.ratio=1", "must be a group of long, short, original, each a whole number of 0 or"),
        # Addresses.
        ("store.remote=ftp://a/b", "cannot keep artifacts behind ftp://; give an address such as"),
        ("store.remote=foo://a/b", "cannot keep artifacts behind foo://; give an address such as"),
        ("tracking.uri=foo://a", "MLflow does not know foo://; give the address of a server or"),
        ("store.path=s3://a/b", "is a folder on this machine, got s3://a/b; an address goes into"),
    ],
)
def test_a_wrong_value_is_one_message(override: str, message: str) -> None:
    found = refusal(override)
    assert found.startswith(f"{override.partition('=')[0].removesuffix('.0.num_steps')}: {message}")
    assert "\n" not in found
    assert len(found) <= 600


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", "did you mean training.learning_rate or"),
        ("training.lr=1", "did you mean training.learning_rate?"),
        ("traning.num_steps=1", "did you mean training or tracking?"),
        ("training.learning-rate=1", "did you mean training.learning_rate?"),
        ("learning_rate=1e-4", "did you mean training.learning_rate?"),
        ("lerning_rate=1e-4", "did you mean training.learning_rate or"),
        ("model.short_length=64", "did you mean data.short_length?"),
        ("evaluation.lengths=[1]", "did you mean evaluation.ruler.lengths or evaluation.perple"),
        (
            "evaluation.batch_size=8",
            "did you mean evaluation.batch_tokens? It counts tokens, not rows",
        ),
        ("data.ratio.lnog=1", "did you mean data.ratio.long?"),
        ("data.sources.0.sbset=1", "did you mean data.sources.0.subset?"),
        ("model.zzzz=1", "known keys: path, revision"),
        ("x" * 5000 + "=1", "known keys: name, seed, original_window"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, message: str) -> None:
    found = refusal(override)
    assert f": unknown key; {message}" in found
    assert "\n" not in found
    assert len(found) <= 600


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.num_steps=0100", 100),
        ("training.num_steps=1_000", 1000),
        ("data.add_bos=no", False),
        ("data.add_bos=on", True),
        ("evaluation.chat_template=true", "true"),
        ("model.revision=0123456789012345678901234567890123456789", "0123456789" * 4),
        ("model.revision=1e10", "1e10"),
        ("report.title=2001-01-01", "2001-01-01"),
        ("report.title=no", "no"),
        ("report.title=1:30", "1:30"),
        ("store.remote=s3://bucket/folder", "s3://bucket/folder"),
        ("store.remote=/mnt/folder", "/mnt/folder"),
        ("store.remote=null", None),
    ],
)
def test_what_a_value_means_is_decided_by_its_setting(override: str, value: object) -> None:
    found: object = load_recipe("demo", [override])
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_every_problem_is_said_once_with_its_line_and_at_most_ten(tmp_path: Path) -> None:
    text = (RECIPES / "demo.yaml").read_text("utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("short_length: 128", "short_length: abc").replace("abf", "afb"))
    line = next(n for n, each in enumerate(path.read_text().splitlines(), 1) if "afb" in each)
    short, method = refusal(recipe=path).splitlines()
    assert short.startswith("data.short_length: must be a whole number of 1 or more, got abc (")
    assert method.startswith("extension.method: must be one of abf, pi")
    assert method.endswith(f"got afb; did you mean abf? ({path}:{line})")
    many = refusal(*(f"training.x{number}=1" for number in range(13))).splitlines()
    assert len(many) == 11
    assert many[-1] == "and 3 more problems; mend these first"


def test_a_missing_key_names_the_line_of_its_group(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\n\ndata:\n  num_tokens: 5\n")
    assert refusal(recipe=path).splitlines() == [
        f"original_window: is required: a whole number of 1 or more ({path})",
        f"target_window: is required: a whole number of 1 or more ({path})",
        "data.sources: is required: a list of 1 or more items, each a group of settings with "
        f"name, kind ({path}:3)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.num_steps: 5\n", "in a file, write num_steps as a key of the group training"),
        ("seed:1: 5\n", "put a space behind the colon: seed: 1"),
    ],
)
def test_a_key_that_is_written_as_elsewhere_says_how(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((RECIPES / "demo.yaml").read_text("utf-8") + text)
    assert f"unknown key; {message} ({path}:" in refusal(recipe=path)


def test_recorded_settings_are_refused_in_the_same_words() -> None:
    recorded = load_recipe("demo").model_dump(mode="json")
    assert load_recorded(recorded, ["training.num_steps=7"]).training.num_steps == 7
    for overrides, message in (
        (["training.num_steps=x"], "training.num_steps: must be a whole number of 1 or more"),
        (["learning_rate=1"], "learning_rate: unknown key; did you mean training.learning_rate?"),
        (["training.seed=3"], "training.seed: is a copy of seed; set seed instead"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_recorded(recorded, overrides)
        assert str(caught.value).startswith(message)
    assert recorded == load_recipe("demo").model_dump(mode="json")


def test_a_seed_of_one_section_is_refused_without_a_common_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((RECIPES / "demo.yaml").read_text("utf-8").replace("seed: 0\n", ""))
    assert load_recipe(path).training.seed == 0
    found = refusal("training.seed=4", recipe=path)
    assert found == "training.seed: is a copy of seed; set seed instead"


def test_every_key_has_words_for_what_it_holds() -> None:
    keys = all_keys()
    assert len(keys) == len(set(keys)) > 120
    for key in keys:
        parts = [int(part) if part.isdigit() else part for part in key.split(".")]
        kind = kind_of(RunConfig, parts)
        assert kind is not None, key
        assert kind.words(), key
        assert "^" not in kind.words(), f"{key} has a pattern that PATTERNS does not word"
    assert kind_of(RunConfig, ["data", "zzz"]) is None
    assert kind_of(EvaluationConfig, ["ruler", "lengths", 3]) is not None
    assert PATTERNS


def test_a_copy_of_a_shared_value_is_no_key_of_its_own() -> None:
    assert not {"training.seed", "data.target_window", "evaluation.original_window"} & {*all_keys()}
    assert settings_named("seed") == ["seed"]
    assert settings_named("learning-rate") == ["training.learning_rate"]
    assert settings_named("training") == settings_named("frobnicate") == []


def test_sections_refuse_huge_values_wherever_they_are_made() -> None:
    class Small(Section):
        counts: dict[str, int]
        texts: list[str]

    assert Small(counts={"a": 10**15 - 1}, texts=["x" * 255]).counts == {"a": 10**15 - 1}
    with pytest.raises(ValueError, match="must be less than"):
        Small(counts={"a": 10**15}, texts=[])
    with pytest.raises(ValueError, match="has a part of 256 bytes"):
        Small(counts={}, texts=["a/" + "x" * 256])


def test_the_settings_of_a_run_of_an_earlier_version_are_read() -> None:
    config = load_recipe("demo")
    recorded = config.model_dump(mode="json")
    recorded["evaluation"]["batch_size"] = 8
    assert load_recorded(recorded) == config
    with pytest.raises(ConfigError, match=r"evaluation\.batch_size: unknown key"):
        load_recorded(recorded, ["evaluation.batch_size=4"])
