"""Damaged SQLite files are refused by name; logs that a killed server left are removed."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from longred.errors import PreflightError
from longred.store.databases import damage_of, refuse_damaged, remove_log


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "prefect.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO runs (name) VALUES (?)", [("x" * 500,)] * 200)
        connection.commit()
    return path


def test_a_whole_an_empty_and_a_missing_database_are_not_refused(database: Path) -> None:
    assert damage_of(database) is None
    assert damage_of(database.with_name("none.db")) is None
    (database.with_name("empty.db")).touch()
    assert damage_of(database.with_name("empty.db")) is None
    refuse_damaged(database, "Prefect")


@pytest.mark.parametrize("kind", ["truncated", "garbage", "overwritten"])
def test_a_damaged_database_is_refused_with_the_file_to_move(database: Path, kind: str) -> None:
    whole = database.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "garbage": b"\x00\xff garbage" * 500,
        "overwritten": whole[:8192] + b"\xff" * 8192 + whole[16384:],
    }
    database.write_bytes(damaged[kind])
    with pytest.raises(PreflightError) as caught:
        refuse_damaged(database, "Prefect")
    assert f"mv {database} {database}.damaged" in str(caught.value)
    assert "Prefect then begins with an empty one" in str(caught.value)


def test_a_database_in_use_is_not_taken_for_damaged(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert damage_of(database) is None


def test_the_log_of_a_killed_process_is_removed_and_nothing_is_lost(database: Path) -> None:
    code = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1])\n"
        "c.execute(\"INSERT INTO runs (name) VALUES ('last')\")\n"
        "c.commit()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(database)], check=False)
    log = database.with_name("prefect.db-wal")
    assert log.stat().st_size > 0
    remove_log(database)
    assert not log.exists()
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT name FROM runs ORDER BY id DESC LIMIT 1").fetchone()
    assert found == ("last",)


def test_the_log_of_a_living_process_stays(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO runs (name) VALUES ('now')")
        connection.commit()
        remove_log(database)
        assert database.with_name("prefect.db-wal").exists()
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (201,)
