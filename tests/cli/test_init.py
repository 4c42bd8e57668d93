"""`longred init`: the file it writes, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from longred.cli import app
from longred.config import RunConfig, load_recipe
from longred.errors import LongredError

LLAMA = "meta-llama/Meta-Llama-3-8B"
Init = Callable[..., Result]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """Run the verb in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["init", *arguments])

    return run


def test_a_recipe_for_a_known_model_needs_no_network(init: Init) -> None:
    result = init("own", "--model", LLAMA, "--target-window", "32768", "--device", "h200")
    assert result.exit_code == 0, result.output
    assert "longred run own.yaml" in result.output
    config, packaged = load_recipe("own.yaml"), load_recipe("llama3-8b-32k")
    assert config.model == packaged.model
    assert config.data == packaged.data
    assert config.extension.rope_theta == 8e6  # 500,000 x 4 squared
    for name in ("method", "step_tokens", "num_steps", "learning_rate", "micro_batch_tokens"):
        assert getattr(config.training, name) == getattr(packaged.training, name)
    assert config.selection.num_distill_layers == 6
    assert config.training.optimizer_offload
    assert max(map(len, Path("own.yaml").read_text().splitlines())) <= 140


def test_every_choice_is_explained(init: Init) -> None:
    init("own", "--model", LLAMA, "--target-window", "131072", "--device", "h200", "--gpus", "8")
    config = load_recipe("own.yaml")
    assert config.training.method == "longred-u"
    assert config.training.parallel.num_processes == 8
    text = Path("own.yaml").read_text()
    for words in ("500,000 x 16 squared", "tokens; the model's own window", "to fit h200"):
        assert words in text
    assert list(yaml.safe_load(text))[:5] == [
        "name",
        "seed",
        "original_window",
        "target_window",
        "model",
    ]


def test_a_model_that_is_rescaled_already_keeps_its_kind_of_rope(
    init: Init, tmp_path: Path
) -> None:
    from longred.models.load import load_config, resolve_model

    model = load_config(resolve_model("demo"))
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    model.rope_parameters = rope | {"original_max_position_embeddings": 128}
    model.save_pretrained(tmp_path / "yarn")
    result = init("own", "--model", "yarn", "--target-window", "512", "--device", "h200")
    assert result.exit_code == 1
    assert isinstance(result.exception, LongredError)  # it has no tokenizer
    assert "tokenizer" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "demo", "--target-window", "8192"], "--target-window: 8192 is too far"),
        (["--model", "demo", "--target-window", "128"], "--target-window: 128 must be larger"),
        (["--model", "demo", "--target-window", "1024", "--original-window", "512"], "exceeds"),
        (["--model", "nowhere", "--target-window", "1024"], "no folder on this machine"),
        (["--model", LLAMA, "--target-window", "32768", "--device", "h300"], "h300"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(
    init: Init, arguments: list[str], message: str
) -> None:
    result = init("own", *arguments)
    assert isinstance(result.exception, LongredError)
    assert message in str(result.exception)
    assert not Path("own.yaml").exists()


def test_a_file_is_never_overwritten(init: Init) -> None:
    Path("own.yaml").write_text("mine")
    result = init("own", "--model", LLAMA, "--target-window", "32768")
    assert "own.yaml: exists already" in str(result.exception)
    assert Path("own.yaml").read_text() == "mine"


def test_a_recipe_for_own_text_plans_what_the_text_gives(init: Init, tmp_path: Path) -> None:
    from longred.data.estimate import refuse_too_little
    from longred.models.load import resolve_model

    words = "The library describes what each function takes, returns and raises. "
    paragraphs = (f"Chapter {n}. {words * (1 + n % 7)}\n\n" for n in range(4000))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "book.txt").write_text("".join(paragraphs))
    model = ("--model", "demo", "--target-window", "1024", "--device", "h200")
    result = init("own", *model, "--text", "text")
    assert result.exit_code == 0, result.output
    config = load_recipe("own.yaml")
    assert config.data.sources[0].path == str(tmp_path / "text")
    read = config.training.num_steps * config.training.step_tokens
    assert 0.9 * config.data.num_tokens <= read <= config.data.num_tokens
    assert refuse_too_little(config.data, resolve_model("demo")) == []


def write_text(path: Path, num_paragraphs: int, subject: str = "library") -> None:
    path.parent.mkdir(exist_ok=True)
    words = f"The {subject} describes what each function takes, returns and raises. "
    path.write_text("".join(f"{n}. {words * (1 + n % 7)}\n\n" for n in range(num_paragraphs)))


DEMO = ("--model", "demo", "--target-window", "512", "--device", "h200")


def test_a_short_text_is_cut_into_more_documents(init: Init, tmp_path: Path) -> None:
    from longred.data.estimate import refuse_too_little
    from longred.models.load import resolve_model

    write_text(tmp_path / "note.txt", 650)
    result = init("own", *DEMO, "--text", "note.txt")
    assert result.exit_code == 0, result.output
    assert "fewer than 64 hardly train" in result.output
    config = load_recipe("own.yaml")
    assert config.data.split_bytes == 16384
    assert config.profiling.num_tokens <= config.data.num_held_out_tokens
    assert config.training.step_tokens <= config.data.num_tokens
    result = init("many", *DEMO, "--text", "note.txt", "--gpus", "500")
    assert str(result.exception).startswith("--gpus: the smallest step of whole blocks has")
    assert refuse_too_little(config.data, resolve_model("demo")) == []


@pytest.mark.medium
def test_texts_count_by_their_size(init: Init, tmp_path: Path) -> None:
    write_text(tmp_path / "größer und mehr" / "a b.txt", 3000)
    write_text(tmp_path / "less" / "b.md", 1500, "manual")
    texts = ("--text", "größer und mehr", "--text", str(tmp_path / "less" / "*.md"))
    assert init("own", *DEMO, *texts).exit_code == 0
    more, less = load_recipe("own.yaml").data.sources
    assert more.path == str(tmp_path / "größer und mehr")
    assert (more.weight, round(less.weight, 1)) == (1.0, 0.5)
    # An address is no path of this machine.
    result = init("far", *DEMO, "--text", "memory://nowhere/text")
    assert "data.sources.0.path: /nowhere/text does not exist" in str(result.exception)


def test_windows_without_common_factors_are_refused(init: Init) -> None:
    result = init("own", "--model", LLAMA, "--target-window", "12345", "--device", "h200")
    assert str(result.exception).startswith("--target-window: 12345 has so few factors in common")
    assert "windows that are multiples of 1,024 allow smaller steps" in str(result.exception)
    assert not Path("own.yaml").exists()
    proposed = re.search(r"and so does (\d+)", str(result.exception))
    assert proposed
    again = init("own", "--model", LLAMA, "--target-window", proposed[1], "--device", "h200")
    assert again.exit_code == 0


@pytest.mark.parametrize("wanted", [8192, 10**6])
def test_a_window_that_is_too_far_gets_one_that_works(init: Init, wanted: int) -> None:
    model = ("--model", "demo", "--device", "h200")
    result = init("own", *model, "--target-window", str(wanted))
    proposed = re.search(r"is too far for .*; give (\d+)", str(result.exception))
    assert proposed
    assert init("own", *model, "--target-window", proposed[1]).exit_code == 0


def test_a_mistyped_folder_is_no_model_on_the_hub(init: Init, tmp_path: Path) -> None:
    (tmp_path / "models/small-llama").mkdir(parents=True)
    result = init("own", "--model", "models/smal-llama", "--target-window", "1024")
    assert str(result.exception).startswith("--model: models/smal-llama is no folder")
    assert "did you mean models/small-llama?" in str(result.exception)


def test_a_cpu_is_measured_with_the_types_that_are_written(
    init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longred.cost import recipe as planning

    measured = []
    choose = planning.choose_speeds

    def choose_speeds(config: RunConfig, *args: Any, **kwargs: Any) -> Any:
        measured.append(config.training.dtype)
        return choose(config, *args, **kwargs)

    monkeypatch.setattr(planning, "choose_speeds", choose_speeds)
    Path("text").mkdir()
    for number in range(40):
        Path(f"text/{number}.txt").write_text(f"chapter {number}: the next number " * 400)
    result = init(*("own", "--model", "demo", "--target-window", "512", "--text", "text"))
    assert result.exit_code == 0, result.output
    assert measured == ["float32"] == [load_recipe("own.yaml").training.dtype]


def test_the_next_commands_plan_for_the_same_device(init: Init) -> None:
    where = ("--device", "h100", "--gpus", "8")
    result = init("own", "--model", LLAMA, "--target-window", "32768", *where)
    assert "longred plan own.yaml --device h100\n" in result.output


def test_a_known_model_has_the_window_that_it_was_trained_at(init: Init) -> None:
    known = ("--model", "Qwen/Qwen2.5-7B", "--target-window", "131072", "--device", "h200")
    assert init("own", *known).exit_code == 0
    assert load_recipe("own.yaml").original_window == 32768


def test_text_that_fills_no_block_is_refused(init: Init, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("Too short for anything.\n")
    result = init("own", "--model", "demo", "--target-window", "1024", "--text", "note.txt")
    assert isinstance(result.exception, LongredError)
    assert "not enough text" in str(result.exception)
    assert not Path("own.yaml").exists()
