"""Questions in the hub's form: files of rows, a dataset's folder, a dataset on the hub."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError, PreflightError
from longred.evaluation.ruler.freeze import fingerprints
from longred.evaluation.ruler.materials import read_materials
from longred.evaluation.ruler.questions import Form, own_questions, read_questions
from longred.evaluation.ruler.rows import Source, read_rows

REVISION = "0123456789abcdef" * 2 + "01234567"
SQUAD: list[dict[str, Any]] = [
    {
        "id": str(number),
        "title": title,
        "context": context,
        "question": question,
        "answers": {"text": answers, "answer_start": [context.find(each) for each in answers]},
    }
    for number, (title, context, question, answers) in enumerate(
        [
            ("Rain", "Rain falls from clouds.", "From what?", ["clouds", "clouds", "from clouds"]),
            ("Rain", "Rain falls from clouds.", "Who rains?", []),
            ("Rain", "Snow is white.\u2028It is cold.", "How is snow?", ["white"]),
            ("Sun", "The sun is hot.", "How is the sun?", ["hot"]),
        ]
    )
]
SQUAD_FILE: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": context,
                    "qas": [
                        {
                            "id": row["id"],
                            "question": row["question"],
                            "answers": [
                                {"text": text, "answer_start": start}
                                for text, start in zip(*row["answers"].values(), strict=True)
                            ],
                            "is_impossible": not row["answers"]["text"],
                        }
                        for row in SQUAD
                        if row["context"] == context
                    ],
                }
                for context in dict.fromkeys(
                    row["context"] for row in SQUAD if row["title"] == title
                )
            ],
        }
        for title in ("Rain", "Sun")
    ],
}
HOTPOT_FILE: list[dict[str, Any]] = [
    {
        "_id": "5a",
        "question": "Is snow white and rain wet?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "supporting_facts": [["Snow", 0], ["Rain", 0]],
        "context": [
            ["Rain", ["Rain is wet.", " It falls."]],
            ["Sun", ["The sun is hot."]],
            ["Snow", ["Snow is white."]],
        ],
    }
]
HOTPOT: list[dict[str, Any]] = [
    {
        "id": row["_id"],
        "question": row["question"],
        "answer": row["answer"],
        "type": row["type"],
        "level": row["level"],
        "supporting_facts": {
            "title": [title for title, _ in row["supporting_facts"]],
            "sent_id": [number for _, number in row["supporting_facts"]],
        },
        "context": {
            "title": [title for title, _ in row["context"]],
            "sentences": [sentences for _, sentences in row["context"]],
        },
    }
    for row in HOTPOT_FILE
]
ROWS: dict[Form, list[dict[str, Any]]] = {"squad": SQUAD, "hotpot": HOTPOT}
FILES: dict[Form, Any] = {"squad": SQUAD_FILE, "hotpot": HOTPOT_FILE}
FORMS: list[Form] = ["squad", "hotpot"]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_dataset(folder: Path, rows: list[dict[str, Any]], subset: str) -> Path:
    """Write a copy of a dataset's repository, with the names that the hub gives to its files."""
    write_parquet(folder / subset / "train-00000-of-00001.parquet", rows[:1])
    for shard in range(2):
        part = rows[shard * len(rows) // 2 : (shard + 1) * len(rows) // 2]
        if part:
            write_parquet(folder / subset / f"validation-0000{shard}-of-00002.parquet", part)
    (folder / "README.md").write_text("A card.")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of HotpotQA in a cache of the hub, with a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "datasets--hotpotqa--hotpot_qa" / "snapshots" / REVISION


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_give_the_same_questions(form: Form, tmp_path: Path) -> None:
    original = tmp_path / "original.json"
    original.write_text(json.dumps(FILES[form]))
    subset = "distractor" if form == "hotpot" else "plain_text"
    sources = [
        write_parquet(tmp_path / "rows.parquet", ROWS[form]),
        write_lines(tmp_path / "rows.jsonl", ROWS[form]),
        write_lines(tmp_path / "rows.jsonl.gz", ROWS[form]),
        write_dataset(tmp_path / "folder", ROWS[form], subset),
    ]
    wanted = read_questions(form, original)
    assert [question.answers for question in wanted.questions] == (
        [("yes",)] if form == "hotpot" else [("clouds", "from clouds"), ("white",), ("hot",)]
    )
    for source in sources:
        found = read_questions(form, source)
        assert found.documents == wanted.documents
        assert found.questions == wanted.questions
        assert found.digest == wanted.digest
        assert found.name == str(source)


def test_hotpot_lines_may_have_their_own_form(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "a.jsonl", HOTPOT_FILE)
    hub = write_lines(tmp_path / "b.jsonl", HOTPOT)
    assert read_questions("hotpot", rows).digest == read_questions("hotpot", hub).digest


def test_a_dataset_on_the_hub_is_known_by_its_content(hub: Path, tmp_path: Path) -> None:
    write_dataset(hub, HOTPOT, "distractor")
    write_dataset(hub, [{**HOTPOT[0], "answer": "no"}], "fullwiki")
    values = {"hotpot": "hotpotqa/hotpot_qa", "hotpot_revision": REVISION, "lengths": [512]}
    config = RulerConfig.model_validate(values)
    found = read_materials(config).questions["hotpot"]
    assert found.name == f"hotpotqa/hotpot_qa at {REVISION}"
    assert [question.answers for question in found.questions] == [("yes",)]
    assert not found.is_builtin
    assert read_materials(config).questions["hotpot"] is found, "a commit is read once"
    local = write_lines(tmp_path / "rows.jsonl", HOTPOT)
    other = RulerConfig.model_validate({"hotpot": str(local), "lengths": [512]})
    assert fingerprints(other) == fingerprints(config)
    assert other.digest_values() == config.digest_values()
    unasked = RulerConfig.model_validate({**values, "tasks": ["vt"], "hotpot_split": "test"})
    assert read_materials(unasked).questions["hotpot"] == own_questions("hotpot")


def test_a_hub_that_cannot_be_reached(hub: Path) -> None:
    source = Source(key="evaluation.ruler.squad", path="some/data", revision=REVISION)
    with pytest.raises(
        PreflightError,
        match=rf"evaluation\.ruler\.squad: the dataset some/data at {REVISION} cannot be fetched "
        r"\(.+\); check the network.* set evaluation\.ruler\.squad to its folder or file",
    ):
        read_rows(source)


@pytest.mark.parametrize("revision", [None, "main", REVISION[:-1], REVISION.upper()])
def test_hub_names_need_a_commit(revision: str | None) -> None:
    values = {"squad": "rajpurkar/squad_v2", "squad_revision": revision, "lengths": [512]}
    with pytest.raises(
        ConfigError,
        match=r"evaluation\.ruler\.squad: rajpurkar/squad_v2 is no file or folder here.*"
        rf"evaluation\.ruler\.squad_revision must be .* got {revision or 'none'}",
    ):
        read_materials(RulerConfig.model_validate(values))


def test_mistyped_files_are_no_hub_names() -> None:
    for name in ("data/dev-v2.0.json", "data/rows.jsonl", "data/rows.parquet"):
        assert not Source(key="k", path=name).is_on_hub
        with pytest.raises(ConfigError, match=rf"^k: {name}: cannot be read \(.*working directory"):
            read_rows(Source(key="k", path=name))
    with pytest.raises(ConfigError, match=r"squad: data/dev-v2\.0\.json: cannot be read"):
        read_questions("squad", Path("data/dev-v2.0.json"))


def test_a_dataset_without_the_subset_or_split(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "folder", SQUAD, "plain_text")

    def read(**change: str) -> list[dict[str, Any]]:
        return read_rows(Source(key="k", path=str(folder), **change))  # type: ignore[arg-type]

    assert read() == read(subset="plain_text") == SQUAD
    assert read(split="train") == SQUAD[:1]
    for change, pattern in (
        ({"split": "test"}, r"test\*\.parquet or \*/test\*\.parquet"),
        ({"subset": "v2"}, r"v2/validation\*\.parquet"),
    ):
        with pytest.raises(ConfigError, match=rf"^k: .*folder: holds no file {pattern}.*k_subset"):
            read(**change)
    write_lines(folder / "data" / "validation.jsonl", SQUAD)
    with pytest.raises(ConfigError, match=r"holds validation in data, plain_text; name one .* k_s"):
        read()
    assert read(subset="data") == SQUAD


@pytest.mark.parametrize(
    ("form", "change", "place"),
    [
        ("squad", {"answers": None}, r"\[1\]\.answers: must be an object"),
        ("squad", {"answers": {"text": "white"}}, r"\[1\]\.answers\.text: must be a list"),
        ("squad", {"context": ""}, r"\[1\]\.context: must not be empty"),
        ("squad", {"question": ""}, r"\[1\]: must have a `question` that"),
        ("squad", {"title": 3}, r"\[1\]\.title: must be text"),
        ("hotpot", {"answer": None}, r"\[1\]\.answer: must be text"),
        ("hotpot", {"context": {"title": ["a"]}}, r"\[1\]\.context: must hold two lists"),
        (
            "hotpot",
            {"context": {"title": ["a", "b"], "sentences": [["c"]]}},
            r"\[1\]\.context: has 2 titles, but 1 entries",
        ),
        ("hotpot", {"supporting_facts": {"a": [], "b": []}}, r"\[1\]\.supporting_facts: must hold"),
    ],
)
def test_malformed_rows_name_their_place(
    form: Form, change: dict[str, Any], place: str, tmp_path: Path
) -> None:
    rows = [ROWS[form][0], {**ROWS[form][0], **change}]
    with pytest.raises(ConfigError, match=rf"evaluation\.ruler\.{form}: .*rows\.jsonl: {place}"):
        read_questions(form, write_lines(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", b'{}\n\n{"a": }\n', r"a\.jsonl:3: is not valid JSON"),
        ("a.jsonl", b"{}\n\xff\n", r"a\.jsonl:2: is not UTF-8"),
        ("a.jsonl.gz", b"{}\n", r"a\.jsonl\.gz: is not a gzip file"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], r"a\.jsonl\.gz: is not a gzip"),
        ("a.parquet", b"PAR1, but no more", r"a\.parquet: is not a parquet file"),
    ],
)
def test_damaged_files_name_their_place(
    name: str, content: bytes, place: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^k: .*{place}"):
        read_rows(Source(key="k", path=str(tmp_path / name)))
