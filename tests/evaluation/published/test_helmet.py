"""HELMET: prompts equal to those of its own program, draws, and messages about bad rows.

The digests below are those of the prompts that HELMET's own `data.py` (princeton-nlp/HELMET,
4526dfbdc512bd9ff721da336bff4e3e75ecfd27) makes from the files of `helmet_files`, at five questions
(fifteen texts to label) and its seed.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helmet_files as files
import pytest

from longred.errors import ConfigError
from longred.evaluation.prompts import messages, plain_prompt
from longred.evaluation.published.reading import shuffled

Read = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("benchmark", "make", "digest"),
    [
        ("helmet_json_kv", lambda folder: {"test": files.json_kv(folder)}, "38d72572f32b5073"),
        ("helmet_niah_mk_2", lambda folder: {"test": files.needles(folder)}, "48c7597d101985d4"),
        ("helmet_niah_mk_3", lambda folder: {"test": files.needles(folder)}, "48c7597d101985d4"),
        ("helmet_niah_mv", lambda folder: {"test": files.needles(folder)}, "b5450b74876f86ab"),
        ("helmet_nq", lambda f: files.questions(f, with_ids=False), "e38a22d0bc8b2067"),
        ("helmet_triviaqa", lambda f: files.questions(f, with_ids=True), "ef16126dcf774471"),
        ("helmet_popqa", files.popular, "77f2ba63c3639ea9"),
        *(
            (
                "helmet_msmarco",
                lambda f, n=n, t=t: files.rankings(f, num_demos=n, with_title=t),
                digest,
            )
            for n, t, digest in (
                (4, False, "7e30771d44daf6f3"),
                (4, True, "f4f823bb0f3af8b6"),
                (40, False, "a780e4eed3666114"),
                (40, True, "e554b0db354b9380"),
            )
        ),
    ],
)
def test_prompts_equal_those_of_the_official_program(
    read: Read, tmp_path: Path, benchmark: str, make: Any, digest: str
) -> None:
    samples = read(benchmark, make(tmp_path), limit=5)
    assert files.digest(map(plain_prompt, samples)) == digest


@pytest.mark.parametrize(
    ("benchmark", "column", "num_labels", "shots", "digest"),
    [
        ("helmet_trec_coarse", "coarse_label", 6, 40, "f2c508c138b6c111"),
        ("helmet_clinic150", "intent", 151, 400, "19d67fd1eff24471"),
        ("helmet_nlu", "label", 68, 100, "26d805c41539fbd3"),
    ],
)
def test_labelled_texts_equal_those_of_the_official_program(
    read: Read,
    tmp_path: Path,
    benchmark: str,
    column: str,
    num_labels: int,
    shots: int,
    digest: str,
) -> None:
    paths, train, test = files.labelled(tmp_path, benchmark, column, num_labels)
    if benchmark == "helmet_nlu":
        del paths["test"]
    samples = read(benchmark, paths, limit=15, shots=shots)
    assert files.digest(map(plain_prompt, samples)) == digest
    label_of = {row["text"]: row[column] for row in [*train, *test]}
    for sample in samples:
        *shown, (last, _) = [
            part.partition("\nlabel: ")[::2]
            for part in sample["input"].partition("nothing else. \n\n")[2].split("\n\n")
        ]
        assert len(shown) == shots
        # One number stands for each label, and the reference is that of the last text's label.
        names = {label_of[text]: name for text, name in shown}
        assert len({name for _, name in shown}) == len(names)
        assert all(names[label_of[text]] == name for text, name in shown)
        if label_of[last] in names:
            assert sample["outputs"] == [names[label_of[last]]]
        counts = Counter(label_of[text] for text, _ in shown)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert max(counts.values()) == math.ceil(shots / num_labels)


def test_a_prompt_reads_as_described(read: Read, tmp_path: Path) -> None:
    passage = {"title": "Paris", "text": "Paris is in France.", "has_answer": True}
    row = {"question": "Where is Paris?", "answers": ["France", "Europe"], "ctxs": [passage] * 2}
    demo = {"question": "Who?", "answers": ["Me"], "ctxs": [{**passage, "title": "X"}]}
    paths = {
        "test": files.write(tmp_path / "a.jsonl", [row]),
        "demos": files.write(tmp_path / "b.jsonl", [demo]),
    }
    (sample,) = read("helmet_hotpotqa", paths, shots=1)
    text = (
        "Document (Title: X): Paris is in France.\n\nQuestion: Who?\nAnswer: Me\n\n"
        "Document (Title: Paris): Paris is in France.\n\nDocument (Title: Paris): Paris is in "
        "France.\n\nQuestion: Where is Paris?"
    )
    assert sample["input"].endswith(f"Answer: [answer]\n\n{text}")
    assert plain_prompt(sample) == sample["input"] + "\nAnswer:"
    assert messages(sample) == [{"role": "user", "content": sample["input"]}]
    assert (sample["outputs"], sample["max_new_tokens"]) == (["France", "Europe"], 20)


def test_one_question_at_several_depths_is_one_group(read: Read, tmp_path: Path) -> None:
    samples = read("helmet_nq", files.questions(tmp_path, with_ids=False), limit=5)
    assert sorted(Counter(sample["group"] for sample in samples).values()) == [2] * 5
    ranked = read("helmet_msmarco", files.rankings(tmp_path, num_demos=40, with_title=True))
    assert sorted(Counter(sample["group"] for sample in ranked).values()) == [3] * 10


def test_only_rare_subjects_are_asked(read: Read, tmp_path: Path) -> None:
    samples = read("helmet_popqa", files.popular(tmp_path))
    assert [sample["group"] for sample in samples] == [
        str(n) for n in range(25) if n % 5 in (0, 1, 4)
    ]


def test_examples_are_other_questions(read: Read, tmp_path: Path) -> None:
    for sample in read("helmet_popqa", files.popular(tmp_path), shots=3):
        *shown, asked = [
            line for line in sample["input"].split("\n") if line.startswith("Question: ")
        ]
        assert len(set(shown)) == 3
        assert asked not in shown


@pytest.mark.medium
def test_order_is_that_of_datasets() -> None:
    from datasets import Dataset

    for count, seed in ((1, 42), (12, 42), (500, 2**31 - 7)):
        rows = Dataset.from_dict({"n": list(range(count))}).shuffle(seed=seed)
        assert shuffled(count, seed) == rows["n"][:]


def test_bad_rows_name_their_line(read: Read, tmp_path: Path) -> None:
    good = json.loads(files.json_kv(tmp_path).read_text().splitlines()[0])
    path = tmp_path / "bad.jsonl"
    for row, message in (
        ({**good, "answer": 5}, r"task: .*bad\.jsonl:3: answer: .*string"),
        ({k: v for k, v in good.items() if k != "demos"}, r"bad\.jsonl:3: demos: field required"),
        ({**good, "demos": [["only a key"]]}, r"bad\.jsonl:3: demos\.0\.1: field required"),
        ([], r"bad\.jsonl:3: is not a JSON object"),
    ):
        files.write(path, [good, good, row, good])
        with pytest.raises(ConfigError, match=message):
            read("helmet_json_kv", {"test": path})
    path.write_text(json.dumps(good) + "\n\n" + '{"context": \n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl:3: is not valid JSON"):
        read("helmet_json_kv", {"test": path})
    path.write_text("\n")
    with pytest.raises(ConfigError, match=r"bad\.jsonl: has no rows"):
        read("helmet_json_kv", {"test": path})
    needle = {"context": "c", "query": "q", "type_needle_v": "numbers"}
    with pytest.raises(ConfigError, match=r"bad\.jsonl:1: has no `answer` and no `outputs`"):
        read("helmet_niah_mv", {"test": files.write(path, [needle])})


def test_too_few_examples_and_wrong_labels_are_refused(read: Read, tmp_path: Path) -> None:
    paths = files.questions(tmp_path, with_ids=True)
    with pytest.raises(ConfigError, match=r"num_fewshot: 9 examples .* has 5 other questions"):
        read("helmet_nq", paths, shots=9)
    demo = files.write(tmp_path / "none.jsonl", [files.question(1, 2)])
    with pytest.raises(ConfigError, match=r"none\.jsonl:1: id: is missing"):
        read("helmet_nq", {**paths, "demos": demo})
    with pytest.raises(ConfigError, match=r"s_pop: is missing"):
        read("helmet_popqa", paths)
    train = files.write(
        tmp_path / "l.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 77}]
    )
    with pytest.raises(ConfigError, match=r"l\.jsonl:2: label: must be a whole .* to 76, got 77"):
        read("helmet_banking77", {"train": train, "test": train}, shots=4)
