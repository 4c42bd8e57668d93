"""MMLU's questions from a user's files: what is read, and errors that name the bad place."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from v2_oracles import letters, line, mmlu_rows, rows

from longred.config.evaluation import MMLU_TASKS, RULER_TASKS, RULER_V2_TASKS, RulerConfig
from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.ruler.freeze import check_lengths, fingerprints, freeze_task, identity
from longred.evaluation.ruler.materials import read_materials, reads_hub
from longred.evaluation.ruler.questions import Questions
from longred.evaluation.ruler.rows import Source
from longred.evaluation.ruler.v2.mmlu import read_mmlu

ROW: dict[str, Any] = {"question": "Is it?", "choices": ["a", "b", "c", "d"], "answer": 0}


def write(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(found)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def read(path: Path) -> Questions:
    return read_mmlu(Source(key="evaluation.ruler.mmlu", path=str(path)))


@pytest.mark.parametrize(("suffix", "folder"), [(".parquet", "all"), (".jsonl", "")])
def test_every_form_holds_the_same(
    tmp_path: Path, mmlu: Questions, suffix: str, folder: str
) -> None:
    first, second = mmlu_rows()["test"][:25], mmlu_rows()["test"][25:]
    write(tmp_path / folder / f"test-00000-of-00002{suffix}", first)
    write(tmp_path / folder / f"test-00001-of-00002{suffix}", second)
    write(tmp_path / folder / f"auxiliary_train{suffix}", mmlu_rows()["auxiliary_train"])
    write(tmp_path / folder / f"validation{suffix}", rows(3, 9, "Never"))
    found = read(tmp_path)
    assert found.digest == mmlu.digest
    assert [question.text for question in found.questions] == [
        line(row) for row in mmlu_rows()["test"]
    ]
    assert all(letters()[q.text] == q.answers[0] for q in found.questions)
    assert [letters()[text] for text in found.documents] == list(found.solutions)


def test_questions_of_a_single_file_surround_each_other(make: Any, tmp_path: Path) -> None:
    found = read(write(tmp_path / "one.jsonl", rows(60, 3, "Which")))
    assert found.documents == tuple(question.text for question in found.questions)
    for sample in make("v2_mk_niah_easy", 4, qa=found):
        assert sample["input"].count(sample["outputs"][0]) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"question": ""}, r"question: must not be empty"),
        ({"question": None}, r"question: must be text"),
        ({"choices": ["a", "b", "c"]}, r"choices: must be four texts, has 3"),
        ({"choices": ["a", "b", "c", 4]}, r"choices\[3\]: must be text"),
        ({"answer": 4}, r"answer: must be a number from 0 to 3, or a letter"),
        ({"answer": True}, r"answer: must be a number from 0 to 3, or a letter"),
        ({"answer": "AB"}, r"answer: must be a number from 0 to 3, or a letter"),
    ],
)
def test_malformed_rows_name_their_place(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "m.jsonl", [ROW, {**ROW, **change}])
    with pytest.raises(
        ConfigError, match=rf"evaluation\.ruler\.mmlu: .*m\.jsonl: \[1\]\.{problem}"
    ):
        read(path)


def test_letters_are_answers_too(tmp_path: Path) -> None:
    numbered = rows(12, 3, "Which")
    lettered = [{**row, "answer": "ABCD"[row["answer"]]} for row in numbered]
    one, other = write(tmp_path / "n.jsonl", numbered), write(tmp_path / "l.jsonl", lettered)
    assert read(one).digest == read(other).digest


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question"\n')
    with pytest.raises(ConfigError, match=r"mmlu: .*a\.jsonl:1: is not valid JSON"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ConfigError, match=r"a\.csv: is no folder, nor a file that ends in \.jsonl"):
        read(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"none\.jsonl: cannot be read \(No such file"):
        read(tmp_path / "none.jsonl")
    path = write(tmp_path / "n.parquet", [{"question": "Is it?", "answer": 0}])
    with pytest.raises(ConfigError, match=r"n\.parquet: \[0\]\.choices: is missing"):
        read(path)
    write(tmp_path / "m" / "test.jsonl", [ROW])
    with pytest.raises(ConfigError, match=r"m: has no file auxiliary_train\* that ends in"):
        read(tmp_path / "m")
    write(tmp_path / "m" / "auxiliary_train.jsonl", [ROW] * 50)
    with pytest.raises(ConfigError, match=r"m: has 1 different questions.* more than 10"):
        read(tmp_path / "m")


def test_the_dataset_on_the_hub(
    tmp_path: Path, mmlu: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two splits of its folder `all` are asked for at the pinned commit."""
    for split, found in mmlu_rows().items():
        write(tmp_path / "all" / f"{split}-00000-of-00001.parquet", found)
        write(tmp_path / "law" / f"{split}-00000-of-00001.parquet", found[:1])
    asked: list[tuple[str, str | None, str]] = []

    def download(source: Source) -> Path:
        asked.append((source.path, source.revision, source.split))
        return tmp_path

    monkeypatch.setattr("longred.evaluation.ruler.rows._download", download)
    named = config(tasks=["v2_mk_niah_easy"], mmlu="cais/mmlu", mmlu_revision="c" * 40)
    assert reads_hub(named)
    found = read_materials(named).questions["mmlu"]
    assert found.digest == mmlu.digest
    assert asked == [("cais/mmlu", "c" * 40, split) for split in ("test", "auxiliary_train")]
    with pytest.raises(ConfigError, match=r"mmlu_revision must be the full commit hash"):
        read_materials(config(tasks=["v2_mk_niah_easy"], mmlu="cais/mmlu"))


def config(**values: Any) -> RulerConfig:
    return RulerConfig.model_validate({"lengths": [4096], "num_samples": 2, **values})


def test_tasks_without_mmlu_are_refused(make: Any) -> None:
    assert {name for name, task in ruler.TASKS.items() if task.questions == "mmlu"} == set(
        MMLU_TASKS
    )
    for task in RULER_V2_TASKS:
        if task not in MMLU_TASKS:
            assert config(tasks=[task]).mmlu is None
            continue
        with pytest.raises(ValueError, match=rf"{task} asks questions, but no questions of MMLU"):
            config(tasks=[task])
        with pytest.raises(ConfigError, match=r"evaluation\.ruler\.mmlu: no questions of MMLU"):
            make(task, qa=None)


def test_groups_stand_for_their_tasks(mmlu_folder: Path) -> None:
    made = config(tasks=["vt", "ruler-v2", "v2_qa_hard"], mmlu=str(mmlu_folder))
    assert made.tasks == ["vt", *RULER_V2_TASKS]
    assert config(tasks=["ruler"]) == config() == config(tasks=list(RULER_TASKS))


def test_mmlu_counts_by_its_content(mmlu_folder: Path, tmp_path: Path) -> None:
    made = config(tasks=["ruler-v2"], mmlu=str(mmlu_folder))
    copied = tmp_path / "one.jsonl"
    write(copied, rows(60, 3, "Which"))
    other = config(tasks=["ruler-v2"], mmlu=str(copied))
    assert made.digest_values() == other.digest_values()
    assert {**fingerprints(made), "ruler/mmlu": ""} == {**fingerprints(other), "ruler/mmlu": ""}
    assert fingerprints(made)["ruler/mmlu"] != fingerprints(other)["ruler/mmlu"]
    assert "ruler/mmlu" not in fingerprints(config())

    def of(given: RulerConfig, task: str) -> dict[str, Any]:
        return identity(given, task, 4096, seed=0, materials=read_materials(given))

    assert of(made, "v2_mk_niah_hard") != of(other, "v2_mk_niah_hard")
    assert of(made, "v2_qa_hard") == of(other, "v2_qa_hard")


def test_index_and_lengths(mmlu_folder: Path, tokenizers: dict[str, Any]) -> None:
    made = config(tasks=["v2_mv_niah_medium", "v2_mk_niah_medium"], mmlu=str(mmlu_folder))
    materials = read_materials(made)
    for task, chance in (("v2_mv_niah_medium", 0.0), ("v2_mk_niah_medium", 25.0)):
        samples, entry = freeze_task(
            made, task, 4096, tokenizer=tokenizers["bpe"], seed=0, materials=materials
        )
        budgets = [sample["max_new_tokens"] for sample in samples]
        assert entry["chance"] == chance
        assert (entry["budget_tokens"], entry["num_questions"]) == (max(budgets), 40)
        assert entry["max_tokens"] == max(s["num_tokens"] + s["max_new_tokens"] for s in samples)
        assert 0.97 < entry["fill"] <= 1.0
    check_lengths(made, tokenizers["bpe"])
    with pytest.raises(ConfigError, match=r"too short.*v2_mv_niah_medium \d+, v2_mk_niah_medium"):
        check_lengths(made.model_copy(update={"lengths": [256]}), tokenizers["bpe"])
