"""SQLite files of the services beside a store: whether they are whole, and what they leave."""

import contextlib
import sqlite3
from pathlib import Path

from longred.errors import PreflightError

CHECKED_BYTES = 64 << 20
"""Size up to which every page is checked, which takes about a second; of larger files the first."""


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a database; None if nothing is, it is missing, or it is in use."""
    if not path.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if path.stat().st_size > CHECKED_BYTES:
                return None
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        # Locked, or not to be opened: the server that needs it says why.
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else str(found).splitlines()[-1]


def advice_for(path: Path, owner: str) -> str:
    """Return what to do about a damaged database.

    Args:
        path: the database.
        owner: Prefect or MLflow.
    """
    return (
        f"stop its server (`longred down`) and move the file aside: mv {path} {path}.damaged; "
        f"{owner} then begins with an empty one, and the store keeps all runs and artifacts"
    )


def refuse_damaged(path: Path, owner: str) -> None:
    """Refuse a damaged database before a server opens it.

    Raises:
        PreflightError: it is damaged; the message says which file to move.
    """
    if (problem := damage_of(path)) is not None:
        raise PreflightError(f"{path}: is damaged ({problem}); {advice_for(path, owner)}")


def remove_log(path: Path) -> None:
    """Write a database's write-ahead log into it and remove the log, unless a process has it open.

    A server that was killed leaves megabytes of log, and some leave it however they end.
    """
    if not path.with_name(f"{path.name}-wal").exists():
        return
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(path, timeout=0)) as database,
    ):
        # The last connection that closes removes the log.
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
