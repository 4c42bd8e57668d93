import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longred.errors import LockedError, MismatchError, PreflightError, StorageError
from longred.store.artifacts import MANIFEST, Store, folder_digest, storage_errors, write_json


def _write(text):
    def make(folder: Path, work: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "value.txt").write_text(text)

    return make


def _fail(folder: Path, work: Path) -> None:
    raise AssertionError("must not be made again")


def test_built_once_then_found(tmp_path):
    store = Store(tmp_path)
    first = store.build("data", {"a": 1}, {"model": "ff"}, _write("x"))
    second = store.build("data", {"a": 1}, {"model": "ff"}, _fail)
    assert (first.path, first.digest) == (second.path, second.digest)
    assert (first.reused, second.reused) == (False, True)
    assert not store.work(first.digest).exists()
    store.verify(second)


def test_digest_covers_settings_inputs_stage_and_version(tmp_path):
    store = Store(tmp_path)
    digests = {
        store.digest("data", {"a": 1}, {"m": "1"}),
        store.digest("data", {"a": 2}, {"m": "1"}),
        store.digest("data", {"a": 1}, {"m": "2"}),
        store.digest("training", {"a": 1}, {"m": "1"}),
        store.digest("data", {"a": 1}, {"m": "1"}, version=2),
    }
    assert len(digests) == 5
    assert store.digest("data", {"a": 1, "b": 2}, {}) == store.digest("data", {"b": 2, "a": 1}, {})


def test_failure_commits_nothing_and_keeps_work(tmp_path):
    store = Store(tmp_path)

    def fail(folder: Path, work: Path) -> None:
        (folder / "half.txt").write_text("half")
        (work / "progress.txt").write_text("step 7")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        store.build("data", {}, {}, fail)
    digest = store.digest("data", {}, {})
    assert store.find("data", digest) is None
    assert (store.work(digest) / "progress.txt").read_text() == "step 7"
    artifact = store.build("data", {}, {}, _write("whole"))
    assert not (artifact.folder / "half.txt").exists()


def test_damaged_artifact_is_made_again(tmp_path):
    store = Store(tmp_path)
    artifact = store.build("data", {}, {}, _write("long text"))
    (artifact.folder / "sub" / "value.txt").write_text("cut")
    again = store.build("data", {}, {}, _write("long text"))
    assert not again.reused
    assert (again.folder / "sub" / "value.txt").read_text() == "long text"


def test_flipped_byte_is_named(tmp_path):
    store = Store(tmp_path)
    artifact = store.build("data", {}, {}, _write("abc"))
    (artifact.folder / "sub" / "value.txt").write_text("abd")
    assert store.find("data", artifact.digest) is not None
    with pytest.raises(MismatchError, match=r"value\.txt"):
        store.verify(artifact)


def test_folder_without_manifest_is_not_finished(tmp_path):
    store = Store(tmp_path)
    artifact = store.build("data", {}, {}, _write("abc"))
    (artifact.folder / MANIFEST).unlink()
    assert store.find("data", artifact.digest) is None


@pytest.mark.parametrize("stage", ["../x", "/etc", "a/b", "", "a\0b"])
def test_paths_cannot_leave_the_store(tmp_path, stage):
    with pytest.raises(ValueError, match="not the name"):
        Store(tmp_path).find(stage, "ab")


def test_symbolic_links_are_refused(tmp_path):
    store = Store(tmp_path / "store")

    def link(folder: Path, work: Path) -> None:
        (folder / "link").symlink_to(tmp_path)

    with pytest.raises(ValueError, match="plain files"):
        store.build("data", {}, {}, link)


CHILD = """
import sys, time
from pathlib import Path
from longred.store.artifacts import Store
def make(folder, work):
    (folder / "half").write_text("half")
    print("making", flush=True)
    time.sleep(60)
Store(sys.argv[1]).build("data", {}, {}, make)
"""


def test_lock_refuses_a_second_maker_and_frees_itself_on_kill(tmp_path):
    store = Store(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "making\n"
        with pytest.raises(LockedError, match=f"process {child.pid}"):
            store.build("data", {}, {}, _write("x"))
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    artifact = store.build("data", {}, {}, _write("x"))
    assert sorted(p.name for p in artifact.folder.iterdir()) == [MANIFEST, "sub"]


def test_full_disk_becomes_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="finished work is intact"), storage_errors(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), storage_errors(tmp_path):
        raise PermissionError(13, "denied")


def test_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match=r"store\.path"):
        Store(tmp_path / "file" / "store").build("data", {}, {}, _write("x"))


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))


def test_manifest_lists_what_it_was_made_from(tmp_path):
    artifact = Store(tmp_path).build("data", {"a": 1}, {"model": "ff"}, _write("x"), version=3)
    manifest = json.loads((artifact.folder / MANIFEST).read_text())
    assert manifest["values"] == {"a": 1}
    assert manifest["inputs"] == {"model": "ff"}
    assert manifest["version"] == 3
    assert manifest["files"]["sub/value.txt"]["size_bytes"] == 1


def test_folder_digest_follows_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    (tmp_path / "README.md").write_text("a card is not the model")
    assert folder_digest(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert folder_digest(tmp_path) != before
