"""A user's own text and question files: what is read, and errors that name the bad place."""

import json
from pathlib import Path
from typing import Any

import pytest

from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.ruler.freeze import fingerprints, freeze_task, identity
from longred.evaluation.ruler.materials import library_text, read_haystack, read_materials
from longred.evaluation.ruler.questions import own_questions, read_questions

SQUAD: dict[str, Any] = {
    "data": [
        {
            "title": "Rain",
            "paragraphs": [
                {
                    "context": "Rain falls from clouds.",
                    "qas": [
                        {
                            "question": "From what does rain fall?",
                            "answers": [
                                {"text": "clouds"},
                                {"text": "clouds"},
                                {"text": "from clouds"},
                            ],
                        },
                        {"question": "Who?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "Snow is white.", "qas": []},
            ],
        }
    ]
}
HOTPOT: list[Any] = [
    {
        "question": "Is snow white and rain wet?",
        "answer": "yes",
        "supporting_facts": [["Snow", 0], ["Rain", 0]],
        "context": [
            ["Rain", ["Rain is wet."]],
            ["Sun", ["The sun", " is hot."]],
            ["Snow", ["Snow is white."]],
        ],
    }
]


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_squad_is_read(tmp_path: Path) -> None:
    found = read_questions("squad", written(tmp_path / "s.json", SQUAD))
    assert found.documents == ("Rain falls from clouds.", "Snow is white.")
    (question,) = found.questions
    assert question.answers == ("clouds", "from clouds")
    assert (question.documents, question.supporting, question.related) == ((0,), (0,), (1,))


def test_hotpot_is_read(tmp_path: Path) -> None:
    found = read_questions("hotpot", written(tmp_path / "h.json", HOTPOT))
    assert found.documents == ("Rain\nRain is wet.", "Sun\nThe sun is hot.", "Snow\nSnow is white.")
    (question,) = found.questions
    assert (question.documents, question.supporting) == ((0, 1, 2), (2, 0))
    assert question.answers == ("yes",)


def test_own_sets_are_sound() -> None:
    squad, hotpot = own_questions("squad"), own_questions("hotpot")
    assert len(squad.documents) >= 20
    assert len(squad.questions) >= 40
    for question in squad.questions:
        text = squad.documents[question.documents[0]].lower()
        assert all(answer.lower() in text for answer in question.answers)
    assert len(hotpot.questions) >= 12
    for question in hotpot.questions:
        text = " ".join(hotpot.documents[number] for number in question.supporting).lower()
        assert question.answers[0] in ("yes", "no") or question.answers[0].lower() in text
        assert len(question.documents) > len(question.supporting)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("{}", r"data: is missing"),
        ("[]", r"the file: must be an object"),
        ('{"data": [\n1,]}', r"s\.json:2: is not valid JSON"),
        ({"data": [3]}, r"data\[0\]: must be an object"),
        (
            {"data": [{"paragraphs": [{"qas": []}]}]},
            r"data\[0\]\.paragraphs\[0\]\.context: is missing",
        ),
        (
            {
                "data": [
                    {"paragraphs": [{"context": "a", "qas": [{"question": "b", "answers": []}]}]}
                ]
            },
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: must have a `question` and `answers`",
        ),
        (
            {"data": [{"paragraphs": [{"context": "a", "qas": [{"answers": [{"text": "a"}]}]}]}]},
            r"qas\[0\]: must have a `question` and `answers` that are not empty",
        ),
        ({"data": [{"paragraphs": [{"context": "a", "qas": []}]}]}, "has no question"),
    ],
)
def test_malformed_squad_names_its_place(tmp_path: Path, change: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"evaluation\.ruler\.squad: .*s\.json.*{place}|{place}"):
        read_questions("squad", written(tmp_path / "s.json", change))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, r"the file: must be a list"),
        ([{**HOTPOT[0], "answer": ""}], r"\[0\]\.answer: must not be empty"),
        ([{**HOTPOT[0], "context": [["Rain"]]}], r"\[0\]\.context\[0\]\[1\]: is missing"),
        (
            [{**HOTPOT[0], "context": [["Rain", "x"]]}],
            r"context\[0\]\[1\]: must be a list",
        ),
        ([HOTPOT[0], 5], r"\[1\]: must be an object"),
    ],
)
def test_malformed_hotpot_names_its_place(tmp_path: Path, change: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        read_questions("hotpot", written(tmp_path / "h.json", change))


def test_haystacks_are_read(tmp_path: Path) -> None:
    written(tmp_path / "b.txt", "Second.")
    (tmp_path / "a").mkdir()
    written(tmp_path / "a" / "first.md", "First.")
    written(tmp_path / "c.json", {"text": "Third."})
    written(tmp_path / "d.jsonl", '{"text": "Fourth."}\n\n{"text": "Fifth."}\n')
    written(tmp_path / "e.py", "not read")
    assert read_haystack(tmp_path) == ["First.", "Second.", "Third.", "Fourth.", "Fifth."]
    assert read_haystack(tmp_path / "e.py") == ["not read"]
    assert len(" ".join(library_text())) > 300_000


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.txt", b" \n", r"a\.txt: has no text"),
        ("a.txt", b"one\ntwo \xff", r"a\.txt:2: is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"tex": 1}\n', r"a\.jsonl:2: is not an object with a `text`"),
        ("a.jsonl", b'{"text": "x"}\n{"tex\n', r"a\.jsonl:2: is not valid JSON"),
        ("a.json", b'{"text":\n\n 1,}', r"a\.json:3: is not valid JSON"),
    ],
)
def test_malformed_haystacks_name_their_place(
    tmp_path: Path, name: str, content: bytes, place: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"evaluation\.ruler\.haystack: .*{place}"):
        read_haystack(tmp_path / name)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"haystack: .*none: cannot be read \(No such file"):
        read_haystack(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"squad: .*none: cannot be read"):
        read_questions("squad", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: has no file that ends in \*\.txt"):
        read_haystack(tmp_path / "empty")


def config(**changes: Any) -> RulerConfig:
    return RulerConfig.model_validate({"lengths": [4096], "num_samples": 2, **changes})


def test_which_documents_hold_the_answer_counts(tmp_path: Path) -> None:
    corrected = [{**HOTPOT[0], "supporting_facts": [["Snow", 0]]}, *HOTPOT[1:]]
    digests = {
        read_questions("hotpot", written(tmp_path / "h.json", rows)).digest
        for rows in (HOTPOT, corrected)
    }
    assert len(digests) == 2


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    written(first, "Some text. ")
    written(second, "Some text. ")
    one, other = config(haystack=str(first)), config(haystack=str(second))
    assert one.digest_values() == other.digest_values()
    assert fingerprints(one) == fingerprints(other)
    written(second, "Other text.")
    assert fingerprints(one) != fingerprints(other)

    def of(made: RulerConfig, task: str) -> dict[str, Any]:
        return identity(made, task, 4096, seed=0, materials=read_materials(made))

    assert of(one, "niah_single_2") != of(other, "niah_single_2")
    assert of(one, "niah_single_1") == of(other, "niah_single_1")
    asked = config(squad=str(written(tmp_path / "s.json", SQUAD)))
    assert of(asked, "qa_1") != of(config(), "qa_1")
    assert of(asked, "qa_2") == of(config(), "qa_2")


@pytest.mark.medium
def test_index_tells_what_samples_are_made_of(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    made = config(
        haystack=str(written(tmp_path / "a.txt", "A few words. " * 50)),
        squad=str(written(tmp_path / "s.json", SQUAD)),
        revision="paper",
    )
    materials = read_materials(made)

    def freeze(task: str, length: int = 4096) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return freeze_task(
            made, task, length, tokenizer=tokenizers["bpe"], seed=0, materials=materials
        )

    samples, entry = freeze("niah_single_2")
    assert entry["metric"] == "recall"
    assert (entry["parameters"], entry["revision"], entry["budget_tokens"]) == (
        "full",
        "paper",
        128,
    )
    assert 0.99 < entry["fill"] <= 1.0
    assert entry["max_tokens"] == max(s["num_tokens"] for s in samples) + 128
    assert entry["haystack_words"] == 150
    assert entry["haystack_uses"] == -(-max(s["num_units"] for s in samples) // 150) > 1
    assert "haystack" not in freeze("niah_single_1")[1]
    assert freeze("niah_single_1", 512)[1]["parameters"] == "compact"
    samples, entry = freeze("qa_1")
    assert entry["metric"] == "any_match"
    assert (entry["num_questions"], entry["num_documents"], entry["question_uses"]) == (1, 2, 2)
    assert entry["haystack_uses"] > 10
    assert {tuple(s["outputs"]) for s in samples} == {("clouds", "from clouds")}
    assert samples[0]["input"].count("Snow is white.") > 10
    assert samples[0]["input"].count("Rain falls from clouds.") == 1


def test_questions_that_are_too_long_are_passed_over(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    short = SQUAD["data"][0]["paragraphs"][0]
    long = {
        "context": "Rain. " * 9000,
        "qas": [{"question": "What?", "answers": [{"text": "Rain"}]}],
    }
    path = written(tmp_path / "s.json", {"data": [{"paragraphs": [long, short, short]}]})
    questions = read_questions("squad", path)
    samples = ruler.generate(
        "qa_1", length=4096, num_samples=3, tokenizer=tokenizers["bpe"], seed=0, qa=questions
    )
    assert all(sample["outputs"] == ["clouds", "from clouds"] for sample in samples)
    alone = written(tmp_path / "l.json", {"data": [{"paragraphs": [long]}]})
    with pytest.raises(
        ConfigError, match=r"evaluation\.ruler\.lengths: 4096 is too short for qa_1"
    ):
        ruler.generate(
            "qa_1",
            length=4096,
            num_samples=1,
            tokenizer=tokenizers["bpe"],
            seed=0,
            qa=read_questions("squad", alone),
        )
