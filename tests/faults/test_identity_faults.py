"""The identity of a stage's inputs is read from the files themselves."""

import json
import shutil
from pathlib import Path

from longred import demo
from longred.cli.flow_host import dry_run_pipeline
from longred.runs.scope import Scope
from longred.runs.session import Watcher, run_options


def plan(store: Path, model: Path) -> dict[str, str]:
    """Return the digest of every stage by name, except the report's, which depends on the path."""
    watcher = Watcher()
    with run_options(scope=Scope(is_dry=True), listener=watcher):
        dry_run_pipeline("demo", [f"store.path={store}", f"model.path={model}"])
    stages = [stage for stage in watcher.stages if stage.name != "report"]
    return {stage.name: str(stage.digest) for stage in stages}


def test_a_flag_of_the_tokenizer_is_another_model_and_a_copy_is_the_same(tmp_path: Path) -> None:
    original = plan(tmp_path / "store", Path(demo.model_path()))
    copy = Path(shutil.copytree(demo.model_path(), tmp_path / "copy"))
    assert plan(tmp_path / "store", copy) == original
    settings = copy / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "add_bos_token": not values.get("add_bos_token")}))
    changed = plan(tmp_path / "store", copy)
    assert changed.keys() == original.keys()
    assert [name for name in original if changed[name] == original[name]] == []
