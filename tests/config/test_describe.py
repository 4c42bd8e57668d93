"""What the keys of a recipe say about themselves, and the JSON Schema that editors read."""

import copy
import dataclasses
import json
import re
from functools import reduce
from operator import getitem
from typing import Any

import jsonschema
import pytest
import yaml

from longred.config import RunConfig, TrainingConfig, describe
from longred.config.section import attribute_texts
from longred.errors import ConfigError
from longred.method.job import TrainingSettings
from longred.method.layout import Layout
from longred.recipes import RECIPES, apply_override

LISTED = describe.keys()
KEYS = {key.name: key for key in LISTED}
WITHOUT_UNIT = {
    "seed",
    "data.sources.N.weight",
    "data.sources.N.buckets",
    "extension.rope_theta",
    "extension.windows.N.rope_theta",
    "extension.long_factor",
    "extension.search.num_rounds",
    "extension.search.population",
    "extension.search.seed",
    "training.learning_rate",
    "training.min_learning_rate",
    "training.epsilon",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.short_distill_weight",
    "training.short_to_long_weight",
    "training.attention_distill_weight",
    "training.logit_distill_weight",
    "training.logit_distill_temperature",
    "training.long_distill_weight",
    "training.lora.rank",
    "training.lora.alpha",
}
"""Numbers that count or measure nothing; others name their unit in their name or description."""

MEASURES = re.compile(
    "tokens|steps|bytes|seconds|characters|rows|samples|layers|processes|tasks|spikes|GB|points|"
    "deviations|windows|share|rotations|threads|checkpoints|copies|parts|decay|epochs|keys",
    re.IGNORECASE,
)
BETAS = "a list of 2 items, each a number of 0 or more and below 1"
SCHEMA = jsonschema.Draft202012Validator(describe.json_schema())


def test_every_key_is_described_in_plain_sentences() -> None:
    for name, key in KEYS.items():
        text = key.description
        assert text.endswith("."), name
        assert 20 <= len(text) <= 300, name
        assert not re.search(r"\s\s|longred\.[a-z]+\.", text), name
        first = re.split(r"\W", text)[0]
        assert text[0].isupper() or text[0] == "`" or first in key.allowed, name


def test_every_number_has_a_unit_or_needs_none() -> None:
    numbers = {name: key for name, key in KEYS.items() if "number" in key.type_text}
    unitless = {name for name, key in numbers.items() if not key.unit}
    assert not {
        name for name in unitless - WITHOUT_UNIT if not MEASURES.search(KEYS[name].description)
    }
    assert unitless >= WITHOUT_UNIT
    for name, key in KEYS.items():
        assert name in numbers or key.unit is None
        # A unit stands in the name or in the description, so that a recipe can be read alone.
        assert not key.unit or MEASURES.search(name) or MEASURES.search(key.description), name


def test_groups_are_described_and_do_not_repeat_their_keys() -> None:
    for name, text in describe.groups().items():
        assert text.endswith("."), name
        names = {key.name.removeprefix(f"{name}.") for key in describe.keys(name)}
        assert not {each for each in names if "_" in each and each in text}, name


def test_every_key_that_a_recipe_can_set_is_listed_and_no_copy() -> None:
    def leaves(kind: Any) -> int:
        count = 0
        for field in kind.model_fields.values():
            inner = describe.section_in(field.annotation)
            is_list = getattr(field.annotation, "__origin__", None) is list
            count += (inner is None or is_list) + (leaves(inner) if inner else 0)
        return count

    copies = ["data.original_window", "data.target_window", "data.seed"]
    copies += ["extension.original_window", "extension.target_window"]
    copies += ["profiling.attention_backend", "training.short_length", "training.ratio"]
    copies += [f"training.{name}" for name in ("original_window", "target_window", "seed")]
    copies += [f"evaluation.{name}" for name in ("original_window", "target_window", "seed")]
    copies += ["training.attention_backend", "evaluation.attention_backend"]
    assert not KEYS.keys() & set(copies)
    assert len(KEYS) == leaves(RunConfig) - len(copies)
    assert "extension.windows.N.target_window" in KEYS


def test_every_example_sets_its_key_to_a_value_of_its_type() -> None:
    pattern = re.compile(describe.override_pattern())
    demo = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    demo["extension"]["windows"] = [{"target_window": 512}]
    for name, key in KEYS.items():
        values = copy.deepcopy(demo)
        dotted, _, text = key.example.partition("=")
        # Overrides are text until their setting reads them, so that the schema sees YAML's types.
        apply_override(values, f"{dotted}=x")
        *path, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
        reduce(getitem, path, values)[last] = yaml.safe_load(text)
        assert not list(SCHEMA.iter_errors(values)), name
        assert pattern.match(key.example), name


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("training.learning_rate", ("a number above 0", 2e-5, None, False)),
        ("training.save_every_steps", ("a whole number of 1 or more", 20, "steps", True)),
        (
            "training.betas",
            ("a list of 2 items, each a number of 0 or more and below 1", [0.9, 0.95], None, False),
        ),
        ("training.parallel.replicas", ("a whole number of 1 or more", 1, None, True)),
        ("extension.rope_theta", ("a number above 0 or null", None, None, False)),
        ("evaluation.ruler.squad", ("text or null", None, None, False)),
        ("data.executor.max_tasks", ("a whole number from 1 to 1000", 64, "tasks", True)),
        ("data.drop_duplicates", ("true or false", True, None, False)),
        ("data.add_bos", ("true or false or null", None, None, False)),
    ],
)
def test_facts_come_from_the_type(name: str, facts: tuple[Any, ...]) -> None:
    key = describe.key(name)
    assert (key.type_text, key.default, key.unit, key.is_runtime) == facts


def test_required_keys_and_choices() -> None:
    required = {key.name for key in KEYS.values() if key.is_required}
    assert {"name", "target_window", "data.num_tokens", "data.sources"} <= required
    assert "doubled" in describe.key("evaluation.ruler.lengths").default_text
    assert describe.key("target_window").default_text == "required"
    assert describe.key("data.drop_duplicates").allowed == (True, False)
    assert describe.key("training.schedule").allowed == ("constant", "cosine", "wsd")
    assert describe.key("evaluation.chat_template").allowed == ("auto", "true", "false")


def test_items_have_the_key_of_their_list_or_mapping() -> None:
    assert describe.key("data.sources.3.path") is describe.key("data.sources.N.path")
    assert describe.key("data.ratio.long").name == "data.ratio"
    assert describe.key("evaluation.ruler.lengths.0").name == "evaluation.ruler.lengths"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rate", "did you mean training.learning_rate?"),
        ("--training.learning-rate", "did you mean training.learning_rate?"),
        ("training.lerning_rate", "did you mean training.learning_rate or"),
        ("training.lr", "did you mean training.learning_rate?"),
        ("traning.method", "did you mean training.method"),
        ("data.sources.0.pth", "did you mean data.sources.N.path?"),
        ("training.seed", "training.seed: is a copy of seed; set seed instead"),
        ("training.lora.dropout", "`longred config training.lora` lists"),
        ("training.method.x", "training.method.x: unknown key"),
        ("zzz", "zzz: unknown key; `longred config` lists"),
    ],
)
def test_an_unknown_key_is_answered_with_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        describe.key(name)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", "did you mean training.learning_rate"),
        ("num_steps=1", "num_steps: unknown key; did you mean training.num_steps?"),
        ("data.num_tokens=1", "only settings of training can change here"),
        ("training.seed=1", "is a copy of seed"),
        ("training.num_steps", "has the form training.key=value"),
        ("=1", "has the form training.key=value"),
    ],
)
def test_a_section_refuses_overrides_of_others(override: str, message: str) -> None:
    describe.check_overrides(["training.num_steps=1", "training.lora={rank: 4}"], "training")
    with pytest.raises(ConfigError, match=re.escape(message)):
        describe.check_overrides(["training.num_steps=1", override], "training")


def test_the_schema_is_one_and_lies_beside_the_recipes() -> None:
    schema = describe.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads((RECIPES / "schema.json").read_text(encoding="utf-8")) == schema, (
        "run `longred config --schema > longred/recipes/schema.json`"
    )
    for part in schema["$defs"].values():
        assert part["description"]
        for field in part["properties"].values():
            assert "$ref" in field or field["description"]
    assert "original_window" not in schema["$defs"]["TrainingConfig"]["properties"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_recipes_keep_the_schema_and_tell_editors_of_it(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert not list(SCHEMA.iter_errors(yaml.safe_load(text)))
    line, _, _ = text.partition("\n")
    _, _, target = line.partition("# yaml-language-server: $schema=")
    assert (path.parent / target).resolve() == RECIPES / "schema.json"


@pytest.mark.parametrize(
    "override",
    ["training.lerning_rate=1", "training.method=sft", "training.num_steps=0", "training.seed=1"],
)
def test_the_schema_refuses_what_cannot_be_set(override: str) -> None:
    values = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    apply_override(values, override)
    assert list(SCHEMA.iter_errors(values))


def test_what_the_core_documents_is_said_once() -> None:
    for kind, fields in ((TrainingSettings, TrainingConfig), (Layout, None)):
        texts = attribute_texts(kind)
        assert list(texts) == [field.name for field in dataclasses.fields(kind)]
        if fields:
            assert fields.model_fields["num_steps"].description == texts["num_steps"]
