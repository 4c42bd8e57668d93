"""Key-value retrieval: the published form, numbers of keys, and published files."""

import gzip
import json
import random
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from oracles import whole

from longred.config import RunConfig, load_recipe
from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.counting import count_tokens
from longred.evaluation.ruler.freeze import check_lengths, fingerprints, freeze_task, identity
from longred.evaluation.ruler.materials import read_materials


def published(pairs: list[Any], key: str) -> str:
    """The prompt of Liu et al. for these pairs, from its parts."""
    lines = [f'"{key}": "{value}"' for key, value in pairs]
    lines[0] = "{" + lines[0]
    lines = [lines[0], *(f" {line}" for line in lines[1:])]
    lines = [*(f"{line}," for line in lines[:-1]), lines[-1] + "}"]
    start = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    return start + "JSON data:\n" + "\n".join(lines) + f'\n\nKey: "{key}"\nCorresponding value:'


def rows(num_keys: int, count: int) -> list[dict[str, Any]]:
    """Rows as published."""
    rng = random.Random(num_keys)

    def draw() -> str:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    found = []
    for _ in range(count):
        pairs = [[draw(), draw()] for _ in range(num_keys)]
        key, value = rng.choice(pairs)
        found.append({"ordered_kv_records": pairs, "key": key, "value": value})
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in found).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def config(**changes: Any) -> RulerConfig:
    values = {"tasks": ["kv_retrieval"], "lengths": [8192], "num_samples": 3, **changes}
    return RulerConfig.model_validate(values)


def freeze(
    made: RulerConfig, tokenizer: Any, length: int = 8192
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    materials = read_materials(made)
    return freeze_task(
        made, "kv_retrieval", length, tokenizer=tokenizer, seed=0, materials=materials
    )


def pairs_of(sample: dict[str, Any]) -> tuple[list[Any], str]:
    """The pairs and the key of a prompt, with a JSON parser."""
    text = sample["input"]
    pairs = [*json.loads(text[text.index("{") : text.rindex("}") + 1]).items()]
    return pairs, re.findall(r'\nKey: "(.+)"\n$', text)[0]


@pytest.mark.parametrize("num_keys", [None, 75])
def test_prompts_have_the_published_form(num_keys: int | None, tokenizers: dict[str, Any]) -> None:
    samples, entry = freeze(config(kv_keys=num_keys), tokenizers["bpe"])
    for sample in samples:
        pairs, key = pairs_of(sample)
        assert whole(sample) == published(pairs, key)
        assert sample["outputs"] == [dict(pairs)[key]]
        assert len(pairs) == sample["num_units"]
        assert num_keys in (None, len(pairs))
        assert sample["depth"] == pytest.approx(
            [*dict(pairs)].index(key) / (len(pairs) - 1), abs=1e-4
        )
        assert sample["num_tokens"] == count_tokens(tokenizers["bpe"], whole(sample))
        assert sample["max_new_tokens"] == entry["budget_tokens"] == 100
    assert entry.get("num_keys") == num_keys
    assert len({sample["input"] for sample in samples}) == 3
    answers = [f" {samples[0]['outputs'][0].upper()}, I think", "", samples[0]["outputs"][0]]
    scores = [ruler.score("kv_retrieval", [each], [samples[0]["outputs"]]) for each in answers]
    assert scores == [100.0, 0.0, 100.0]


def test_samples_with_a_number_of_keys_depend_on_nothing_else(tokenizers: dict[str, Any]) -> None:
    few, _ = freeze(config(kv_keys=20, num_samples=2), tokenizers["bpe"])
    many, _ = freeze(config(kv_keys=20, num_samples=4), tokenizers["bpe"])
    assert many[:2] == few
    compact, _ = freeze(config(kv_keys=20), tokenizers["bpe"], length=1024)
    assert all(len(pairs_of(sample)[0]) == 20 for sample in compact)
    assert compact[0]["parameters"] == "compact"


def test_keys_that_do_not_fit_are_refused(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4096 is too short for kv_retrieval, which needs at"):
        freeze(config(kv_keys=140), tokenizers["bpe"], length=4096)
    with pytest.raises(ConfigError, match=r"\[4096\] are too short .* kv_retrieval \d+"):
        check_lengths(config(kv_keys=140, lengths=[4096, 65536]), tokenizers["bpe"])
    # The first 32 samples, which the minimum is measured on, are the small ones.
    found = rows(5, 40) + rows(100, 1)
    made = config(kv_records=str(write(tmp_path / "a.jsonl", found)), num_samples=41)
    with pytest.raises(
        ConfigError,
        match=r"evaluation\.ruler\.lengths: kv_retrieval with 100 keys takes \d{4} tokens of this "
        r"tokenizer, more than 4096; .*evaluation\.ruler\.kv_keys",
    ):
        freeze(made, tokenizers["bpe"], length=4096)


@pytest.mark.parametrize("name", ["kv-retrieval-20_keys.jsonl", "kv-retrieval-20_keys.jsonl.gz"])
def test_published_samples_are_asked_as_they_are(
    name: str, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    found = rows(20, 4)
    made = config(kv_records=str(write(tmp_path / name, found)), num_samples=3)
    # Published samples have full parameters below 4,096 tokens too.
    samples, entry = freeze(made, tokenizers["bpe"], length=2048)
    for sample, row in zip(samples, found, strict=False):
        assert whole(sample) == published(row["ordered_kv_records"], row["key"])
        assert sample["outputs"] == [row["value"]]
        depth = row["ordered_kv_records"].index([row["key"], row["value"]]) / 19
        assert sample["depth"] == pytest.approx(depth, abs=1e-4)
        assert (sample["parameters"], sample["max_new_tokens"]) == ("full", 100)
    assert entry["num_keys"] == 20
    all_of_them, _ = freeze(config(kv_records=made.kv_records, num_samples=9), tokenizers["bpe"])
    assert len(all_of_them) == 4, "a file has so many samples and no more"


def test_files_of_samples_are_known_by_their_content(tmp_path: Path) -> None:
    def of(**changes: Any) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        made = config(**changes)
        materials = read_materials(made)
        return (
            identity(made, "kv_retrieval", 8192, seed=0, materials=materials),
            fingerprints(made),
            made.digest_values(),
        )

    one = of(kv_records=str(write(tmp_path / "a.jsonl", rows(5, 2))))
    assert one == of(kv_records=str(write(tmp_path / "b.jsonl.gz", rows(5, 2))))
    assert one[:2] != of(kv_records=str(write(tmp_path / "c.jsonl", rows(5, 3))))[:2]
    assert one[:2] != of()[:2]
    assert of(kv_keys=75)[0] != of(kv_keys=140)[0] != of()[0]
    assert "kv_keys" not in of()[2]
    assert of(kv_keys=75)[2]["kv_keys"] == 75
    made = config(kv_keys=75)
    materials = read_materials(made)
    plain = identity(config(), "vt", 8192, seed=0, materials=materials)
    assert identity(made, "vt", 8192, seed=0, materials=materials) == plain


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"key": "none"}, r"\[1\]: must have its `key` with its `value` in `ordered_kv_records`"),
        ({"value": "none"}, r"\[1\]: must have its `key` with its `value`"),
        ({"ordered_kv_records": [["a", "b"]]}, r"\[1\]: must have two or more pairs"),
        ({"ordered_kv_records": [["a", "b"], ["a", "c"]]}, r"\[1\]: must have different keys"),
        ({"ordered_kv_records": [["a"], ["b"]]}, r"\[1\]\.ordered_kv_records\[0\]\[1\]: is"),
        ({"ordered_kv_records": {"a": "b"}}, r"\[1\]\.ordered_kv_records: must be a list"),
    ],
)
def test_malformed_samples_name_their_place(
    change: dict[str, Any], place: str, tmp_path: Path
) -> None:
    first, second = rows(5, 2)
    path = write(tmp_path / "a.jsonl", [first, {**second, **change}])
    with pytest.raises(ConfigError, match=rf"^evaluation\.ruler\.kv_records: .*a\.jsonl: {place}"):
        read_materials(config(kv_records=str(path)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, problem in (
        ("none.jsonl", r"none\.jsonl: cannot be read"),
        ("a.json", r"a\.json: does not end in \.jsonl"),
    ):
        with pytest.raises(ConfigError, match=rf"^evaluation\.ruler\.kv_records: .*{problem}"):
            read_materials(config(kv_records=str(tmp_path / name)))


def test_a_file_has_its_own_number_of_keys() -> None:
    def load(*changes: str) -> RunConfig:
        return load_recipe("demo", [f"evaluation.ruler.{change}" for change in changes])

    assert load("kv_keys=2").evaluation.ruler.kv_keys == 2
    with pytest.raises(ConfigError, match=r"evaluation\.ruler.*kv_keys: .* give one of the two"):
        load("kv_keys=75", "kv_records=a.jsonl")
    with pytest.raises(ConfigError, match=r"evaluation\.ruler\.kv_keys"):
        load("kv_keys=1")
