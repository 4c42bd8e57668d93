"""Frozen samples: same bytes every time, and files independent of each other."""

import json
import shutil
from pathlib import Path

import pytest

from longred.config import EvaluationConfig
from longred.errors import ConfigError, MismatchError
from longred.evaluation.samples import freeze
from longred.evaluation.tasks import read_lines, read_tasks
from longred.store.artifacts import Store


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def changed(config: EvaluationConfig, **ruler: object) -> EvaluationConfig:
    return config.model_copy(update={"ruler": config.ruler.model_copy(update=ruler)})


@pytest.mark.medium
def test_bytes_are_the_same_each_time(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    data_folder: Path,
    samples_folder: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    freeze(config, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    assert files(folder) == files(samples_folder)


def test_another_length_changes_no_other_file(
    config: EvaluationConfig,
    tiny_model_folder: Path,
    data_folder: Path,
    samples_folder: Path,
    tmp_path: Path,
) -> None:
    more = changed(config, lengths=[448, 512, 384])
    folder = tmp_path / "samples"
    folder.mkdir()
    freeze(more, tiny_model_folder, data_folder, folder, store=Store(tmp_path))
    old, new = files(samples_folder), files(folder)
    assert set(new) - set(old) == {"ruler/niah_single_1-448.jsonl", "ruler/niah_single_2-448.jsonl"}
    assert {name for name in old if old[name] != new[name]} == {"index.json"}


def test_text_shorter_than_the_window_is_refused_before_the_training(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    """All other samples fit, and the loss on held-out text is measured after the training."""
    short = shutil.copytree(data_folder, tmp_path / "data")
    lines = (short / "held_out" / "documents.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    pieces = [
        {**row, "text": row["text"][i : i + 150]} for row in rows for i in range(0, 6000, 150)
    ]
    (short / "held_out" / "documents.jsonl").write_text("\n".join(map(json.dumps, pieces)))
    short_tasks = config.short.model_copy(update={"tasks": ["brackets"], "num_samples": 1})
    asked = config.model_copy(update={"short": short_tasks})
    folder = tmp_path / "samples"
    folder.mkdir()
    message = r"no held-out document has 224 tokens, .* the longest has (\d+); .*short_window=\1$"
    with pytest.raises(ConfigError, match=message) as caught:
        freeze(asked, tiny_model_folder, short, folder, store=Store(tmp_path))
    window = int(str(caught.value).rpartition("=")[2])
    assert window < 224
    less = asked.model_copy(update={"short_window": window})
    freeze(less, tiny_model_folder, short, folder, store=Store(tmp_path))


def test_index_tells_what_was_frozen(samples_folder: Path) -> None:
    index = json.loads((samples_folder / "index.json").read_text())
    entry = index["ruler"]["niah_single_1"]["384"]
    assert (entry["parameters"], entry["budget_tokens"], entry["num_samples"]) == ("compact", 16, 3)
    assert 0.8 < entry["fill"] <= 1.0
    assert entry["max_tokens"] <= 384
    assert index["short"]["brackets"]["chance"] == pytest.approx(100 / 3, abs=0.01)
    assert index["short"]["brackets"]["capacity"] == "coding"
    capacities = {task.name: task.capacity for task in read_tasks(samples_folder)}
    assert capacities == {
        "continuation": "general",
        "brackets": "coding",
        "cloze": "reading",
        "key_recall": "reading",
        "niah_single_1": None,
        "niah_single_2": None,
    }
    keys = [task.key for task in read_tasks(samples_folder)]
    assert keys[-1] == "ruler-niah_single_2-512"
    assert len(keys) == 8


def test_whether_packaged_questions_count_changes_no_sample(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    store, found = Store(tmp_path), []
    for counts in (False, True):
        asked = changed(config, tasks=["qa_1", "vt"], lengths=[512], count_builtin=counts)
        asked = asked.model_copy(
            update={"short": asked.short.model_copy(update={"num_samples": 1})}
        )
        folder = tmp_path / str(counts)
        folder.mkdir()
        freeze(asked, tiny_model_folder, data_folder, folder, store=store)
        index = json.loads((folder / "index.json").read_text())["ruler"]
        found.append((index["qa_1"]["512"], index["vt"]["512"]))
    (plain, other), (counted, same) = found
    assert plain["builtin"] is True
    assert counted == {**plain, "counts": True}
    assert other == same
    assert "builtin" not in other


def test_changed_samples_are_refused(samples_folder: Path, tmp_path: Path) -> None:
    for name, content in files(samples_folder).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "short" / "cloze.jsonl"
    path.write_text(path.read_text() + "{}\n")
    task = next(task for task in read_tasks(tmp_path) if task.name == "cloze")
    with pytest.raises(MismatchError, match="was changed"):
        task.read_samples()


def test_bad_requests_are_refused(
    config: EvaluationConfig, tiny_model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"evaluation\.ruler\.tasks: vtt is unknown"):
        freeze(
            changed(config, tasks=["vtt"]), tiny_model_folder, data_folder, tmp_path, store=store
        )
    (tmp_path / "tokenizer.json").write_text((tiny_model_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        (tiny_model_folder / "tokenizer_config.json").read_text()
    )
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(MismatchError, match="another tokenizer"):
        freeze(config, tmp_path, data_folder, tmp_path, store=store)


def test_damaged_lines_name_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(MismatchError, match=r"a\.jsonl:2: is not a JSON object"):
        read_lines(path)
    path.write_text('{"a": 1}\n{"b\n')
    with pytest.raises(MismatchError, match=r"a\.jsonl:2: is not valid JSON"):
        read_lines(path)
