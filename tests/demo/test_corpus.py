import pytest

from longred.data.documents import document_id, is_held_out
from longred.demo import corpus


@pytest.fixture
def library(tmp_path):
    files = {
        "os.py": "import sys\r\n",
        "json/decoder.py": "x = 1\n",
        "json/tests/test_a.py": "x = 1\n",
        "test/test_os.py": "x = 1\n",
        "idlelib/idle_test/a.py": "x = 1\n",
        "site-packages/torch.py": "x = 1\n",
        "dist-packages/apt.py": "x = 1\n",
        "json/__pycache__/a.py": "x = 1\n",
        "config-3.11-x86_64-linux-gnu/python-config.py": "x = 1\n",
        "_sysconfigdata__linux_.py": "x = 1\n",
        "empty.py": " \n",
        "README.txt": "no module\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    return tmp_path


def test_only_readable_modules_outside_tests(library, caplog):
    with caplog.at_level("INFO"):
        documents = list(corpus.library_documents(library))
    assert documents == [("json/decoder.py", "x = 1\n"), ("os.py", "import sys\n")]
    assert "skipped 1 " in caplog.text


def test_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(corpus.library_documents(tmp_path / "nowhere"))


def test_running_library_is_sorted_and_the_same_twice():
    first = list(corpus.library_documents())
    assert first == list(corpus.library_documents())
    paths = [path for path, _ in first]
    assert paths == sorted(paths)
    assert len(paths) > 300
    assert "json/decoder.py" in paths
    assert not any("site-packages" in path or "/tests/" in path for path in paths)


def test_split_follows_the_document_id():
    training = {path for path, _ in corpus.training_documents()}
    held_out = {path for path, _ in corpus.held_out_documents()}
    assert not training & held_out
    assert held_out == {
        path
        for path in training | held_out
        if is_held_out(document_id(corpus.SOURCE_NAME, path), corpus.VALIDATION_FRACTION)
    }
    assert 0.05 < len(held_out) / len(training | held_out) < 0.15
