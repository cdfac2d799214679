"""The small table that proves whether a switch was committed.

The label of a restore (its mark) is put into what is copied over the live database. So it appears there in the very
transaction that replaces the content, and stays whatever others commit afterwards, until the restore is settled. Labels
of restores that are not settled yet go along with a later restore. The table is in no dump and is nothing to lose.

Before it takes the lock for its switch, an attempt puts another label into the live database: ``begun``. So a file that
has neither of the two is not the one that the attempt knew: somebody has put another one in its place since.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

TABLE = "django_snapshots_switch"


def begun(mark: str) -> str:
    """The label of a database which the attempt *mark* is about to replace, and has not replaced."""
    return f"begun:{mark}"


def after(found: Iterable[str], *, come: str, go: str) -> set[str]:
    """The labels of the content that an attempt brings, by those *found* in what is there: *come* is the mark that it
    brings, *go* the one that it takes back. What is taken back is once more the state before that switch."""
    back = begun(go) if go else ""
    return ({come, back, *found} - {"", go}) - {begun(come)}


def read(connection: sqlite3.Connection) -> set[str]:
    """The labels that are in the database."""
    if not connection.execute("SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?", [TABLE]).fetchone():
        return set()
    return {str(mark) for (mark,) in connection.execute(f"SELECT mark FROM main.{TABLE}")}  # noqa: S608 - a constant


def write(connection: sqlite3.Connection, marks: Iterable[str]) -> None:
    """Make *marks* the labels; without any there is no table."""
    connection.execute(f"DROP TABLE IF EXISTS main.{TABLE}")
    rows = [(mark,) for mark in sorted(marks)]
    if rows:
        connection.execute(f"CREATE TABLE main.{TABLE} (mark TEXT)")
        connection.executemany(f"INSERT INTO main.{TABLE} (mark) VALUES (?)", rows)  # noqa: S608 - a constant
