import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from longred.cli import app
from longred.models.extension import write_extension


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["drift", *map(str, arguments)])


@pytest.fixture(scope="module")
def student_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    windows = {"original_window": 64, "target_window": 256}
    write_extension(tiny_model_folder, folder, digest="", method="abf", rope_theta=1e6, **windows)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [{"text": f"def f{n}(x):\n    return json.loads(x)\n" * 40} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.medium
def test_two_models_are_compared_outside_of_a_pipeline(
    tiny_model_folder: Path, student_folder: Path, text: Path, tmp_path: Path
) -> None:
    options = ("--data", text, "--tokens", 200, "--out", tmp_path / "out")
    table = call(tiny_model_folder, student_folder, *options)
    assert table.exit_code == 0, table.output
    assert "192 tokens" in table.stdout
    assert "rows of 32" in table.stdout
    assert len(table.stdout.splitlines()) == 3 + 3 + 3 + 3
    assert table.stdout.count("a short passage has perplexity") == 2
    values = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert values["num_tokens"] == 192
    assert values["length"] == 32
    assert values["format_version"] == 2
    assert len(pyarrow.parquet.read_table(tmp_path / "out" / "drift.parquet")) > 0
    for name in ("layers", "heads", "positions"):
        picture = (tmp_path / "out" / f"drift-{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    again = call(tiny_model_folder, student_folder, *options[:4], "--json")
    assert json.loads(again.stdout) == values
    assert [passage["is_kept"] for passage in values["passage"]] == [True, True]


@pytest.mark.medium
def test_one_model_is_swept(tiny_model_folder: Path, text: Path, tmp_path: Path) -> None:
    options = ("--data", text, "--tokens", 64, "--theta", "2e4,1e6", "--factor", "4")
    result = call(tiny_model_folder, *options, "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert [(p["method"], p["value"]) for p in values["points"]] == [
        ("abf", 2e4),
        ("abf", 1e6),
        ("pi", 4.0),
    ]
    assert values["rope_theta_before"] == 10000
    assert (tmp_path / "drift-sweep.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give MODEL_B"),
        (["MODEL_B", "--theta", "2e4"], "not both"),
        (["--theta", "much"], "--theta: 'much' is not a list of numbers"),
        (["--theta", "500"], "does not raise the model's own rope_theta"),
        (["--factor", "1"], "a factor must be above 1"),
        (["MODEL_B", "--tokens", "0"], "--tokens: must be 1 or more"),
        (["MODEL_B", "--dtype", "int8"], "--dtype: 'int8'"),
        (["MODEL_B", "--device", "tpu"], "device: 'tpu'"),
        (["MODEL_B", "--data", "nowhere.txt"], "does not exist"),
        (["MODEL_B", "--length", "100000"], "no document in"),
        (["nowhere"], "nowhere: is no model"),
        (["OTHER"], "another tokenizer"),
    ],
)
def test_mistakes_are_named(
    tiny_model_folder: Path,
    student_folder: Path,
    text: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    folders = {"MODEL_B": str(student_folder), "OTHER": str(other)}
    given = [folders.get(option, option) for option in options]
    data = [] if "--data" in given else ["--data", str(text)]
    result = call(tiny_model_folder, *given, *data)
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert not result.stdout
