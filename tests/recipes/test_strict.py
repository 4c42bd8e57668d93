import os
import time
from pathlib import Path

import pytest
import yaml

from longred.errors import ConfigError
from longred.recipes import RECIPES, apply_override, read_recipe, strict

BOTH_PARSERS = pytest.mark.parametrize(
    "parser",
    [
        pytest.param(
            getattr(yaml, "CSafeLoader", None),
            marks=pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml"),
            id="c",
        ),
        pytest.param(yaml.SafeLoader, id="python"),
    ],
)


def refusal(text: str, tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(ConfigError) as caught:
        read_recipe(str(path))
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def override(text: str) -> dict[str, object]:
    values: dict[str, object] = {}
    apply_override(values, text)
    return values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nname: x\nseed: 2\n", ":3: seed: is given twice, in lines 1 and 3; remove one"),
        (
            "training:\n  num_steps: 1\n\ntraining: {num_steps: 2}\n",
            ":4: training: is given twice, in lines 1 and 4; remove one",
        ),
        (
            "training:\n  lora:\n    rank: 1\n    alpha: 2\n    rank: 3\n",
            ":5: training.lora.rank: is given twice, in lines 3 and 5; remove one",
        ),
        (
            "data:\n  sources:\n  - {name: a}\n  - {name: b, name: c}\n",
            ":4: data.sources.1.name: is given twice in line 4; remove one",
        ),
        ('seed: 1\n"seed": 2\n', ":2: seed: is given twice, in lines 1 and 2; remove one"),
    ],
)
@BOTH_PARSERS
def test_a_key_given_twice_is_refused_with_both_lines(monkeypatch, tmp_path, parser, text, message):
    monkeypatch.setattr(strict, "_LOADER", parser)
    assert refusal(text, tmp_path) == message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: &x 1\n", [":1: &x: anchors and aliases", "quotes"]),
        ("a: &a [*a]\n", [":1: &a: anchors and aliases"]),
        ("\na: *x\n", [":2: *x: anchors and aliases"]),
        ("a:\n  <<: {b: 1}\n", [":2: a.<<: groups are not merged"]),
        ("a: !!int x\n", [":1: !!int: tags are not read"]),
        ("a: !!python/object/apply:os.system [ls]\n", [":1: !!python/object/apply:os.system:"]),
        ("a: !mine x\n", [":1: !mine: tags"]),
        ("a: 1\n---\nb: 2\n", [":2: holds a second document"]),
        ("[a]: 1\n", [":1: a key must be text"]),
        ("a: " + "[" * 30, [":1: holds more than 20 levels"]),
        ("a: 1\nb: [1\n", [": is not valid YAML", "bracket [ is not closed"]),
        ("a: 1\nb: c: d\n", [":2: is not valid YAML", "colon and a space"]),
        ("a:\n\tb: 1\n", [":2: is not valid YAML", "not tabs"]),
        ("a: 1\nb: \0\n", [":2: is not valid YAML", "remove the control character"]),
        ('a: "\\UFFFFFFFF"\n', ["is not valid YAML", "escape"]),
        ("a: '1\n", ["is not valid YAML", "a quote is not closed"]),
        ("%YAML " + "9" * 5000 + ".1\n--- a\n", ["is not valid YAML"]),
        ("- 1\n- 2\n", [": a recipe is a mapping of sections"]),
        ("", [": a recipe is a mapping of sections"]),
        ("a: " + "x" * strict.MAX_BYTES, [": is larger than 1,000,000 bytes"]),
    ],
)
@BOTH_PARSERS
def test_what_no_recipe_needs_is_refused_with_its_line(monkeypatch, tmp_path, parser, text, parts):
    monkeypatch.setattr(strict, "_LOADER", parser)
    message = refusal(text, tmp_path)
    for part in parts:
        assert part in message
    assert len(message) <= 600


def test_nine_levels_of_ten_aliases_do_not_explode(tmp_path):
    levels = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]" for n in range(1, 10))]
    start = time.perf_counter()
    assert ":1: &a0: anchors and aliases are not read" in refusal("\n".join(levels), tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.sources: &a: anchors"):
        override("data.sources=[&a [x, x], [*a, *a]]")
    assert time.perf_counter() - start < 1.0


@BOTH_PARSERS
def test_plain_values_are_their_text_and_only_nothing_is_null(monkeypatch, parser):
    monkeypatch.setattr(strict, "_LOADER", parser)
    texts = ["1", "010", "1:30", "no", "on", "true", "2001-99-99", "2001-01-01", "1e-4", ".inf"]
    text = f"a: [{', '.join(texts)}]\nb: [null, ~, Null, '', 'null', ]\nc:\nd: |\n  two\n  lines\n"
    values, lines = strict.read_yaml(text, "x")
    assert values == {
        "a": texts,
        "b": [None, None, None, "", "null"],
        "c": None,
        "d": "two\nlines\n",
    }
    assert (lines["a"], lines["a.9"], lines["b.4"], lines["c"], lines["d"]) == (1, 1, 2, 3, 4)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_packaged_recipes_are_read_as_pyyaml_reads_their_structure(name):
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")

    def texts(value):
        if isinstance(value, dict):
            return {str(key): texts(item) for key, item in value.items()}
        return [texts(item) for item in value] if isinstance(value, list) else str(value)

    plain = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - builds only text
    assert texts(strict.read_yaml(text, name)[0]) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "a: an override has the form a=VALUE"),
        ("=1", "=1: an override has the form section.key=value"),
        ("--a.b=1", "--a.b: settings are written without dashes before them: a.b=1"),
        ("--a.b", "--a.b: settings are written without dashes before them: a.b=VALUE"),
        ("a..b=1", "a..b: is not a dotted key of the form section.key"),
        ("a" + ".a" * 20 + "=1", "is not a dotted key"),
        ("a=[1", "a: [1 is not valid YAML"),
        ("a=*.txt", "text that starts with * or & needs quotes"),
        ("a={b: 1, b: 2}", "a.b: is given twice; remove one"),
        ("a=1\n---\n2", "a: holds a second document"),
        ("a=\ud800", "a: \\ud800 is not valid YAML"),
        ("a=" + "x" * (strict.MAX_BYTES + 1), "a: is longer than 1,000,000 characters"),
    ],
)
def test_a_malformed_override_is_refused_with_its_key(text, message):
    with pytest.raises(ConfigError) as caught:
        override(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 600


@pytest.mark.parametrize("index", ["²", "٣", "-1", "2", "9" * 5000, "x"])
def test_an_index_outside_a_list_is_refused(index):
    with pytest.raises(ConfigError, match=r"is not one of the list's items, 0 to 1"):
        apply_override({"a": [1, 2]}, f"a.{index}=1")


def test_an_override_takes_the_lines_of_its_group_away(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a:\n  b: 1\n  c: 2\nab: 3\n")
    recipe = read_recipe(str(path), ["a={b: 4}"])
    assert recipe.values == {"a": {"b": "4"}, "ab": "3"}
    assert recipe.lines == {"ab": 4}


def test_a_file_that_cannot_be_read_is_one_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "latin.yaml": r"^latin\.yaml:2: is not text in UTF-8",
        "folder": r"^folder: is a folder",
        "x" * 300: r"^x{40}.*: is not a recipe or file \(File name too long\)",
        "no.yaml": rf"relative paths start in the working directory, {os.getcwd()}",
        "/no.yaml": r"^/no\.yaml: no such recipe or file; recipes: demo",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_recipe(name)


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert read_recipe(str(path)).values == {"seed": "1"}
