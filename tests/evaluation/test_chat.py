"""Which models use their chat template: those trained to end their turns with EOS."""

import json
import shutil
from pathlib import Path

import pytest

from longred.errors import ConfigError
from longred.evaluation.model import is_chat

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}END{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_folder, copy)
    return copy


def set_template(folder: Path, end: str) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "chat_template": TEMPLATE.replace("END", end)}))


def test_without_a_template_nobody_is(folder: Path) -> None:
    assert not is_chat("auto", folder)
    assert not is_chat("false", folder)
    with pytest.raises(ConfigError, match=r"chat_template: true, and .* has no chat template"):
        is_chat("true", folder)


def test_a_template_whose_turns_end_with_eos_is_a_chat_models(folder: Path) -> None:
    set_template(folder, "<|eos|>")
    assert is_chat("auto", folder)
    assert not is_chat("false", folder)


def test_a_template_that_a_base_model_carries_is_not_used(folder: Path) -> None:
    set_template(folder, "<|end of turn|>")
    assert not is_chat("auto", folder)
    assert is_chat("true", folder)
