"""Replaces the rows of some tables of a live SQLite database by those of another file; all else in it stays.

One transaction does all of it, from the first look to the commit: nobody else may write meanwhile, and readers go on
until the commit (with a write-ahead log also through it). Who can die when, and what then holds:

=====================================  ================================================================================
the attempt dies, or sleeps            then
=====================================  ================================================================================
before the transaction                 nothing was touched but the label ``begun``. ``settle`` finds no other one in the
                                       live database: BEFORE.
within it                              the whole live database as it was, whose kept copy is on the disk before the
                                       first row goes; SQLite takes the rest back when the file is next opened. No
                                       label: BEFORE. Who only sleeps has the lock: ``settle`` waits a bounded time.
after the commit                       the label was committed with the rows. SWITCHED.
while rolling back                     the same transaction the other way: the label goes with the rows. BEFORE.
=====================================  ================================================================================

What else is there is left alone: foreign keys are off before the transaction begins, so that no row of another table
goes with those that are deleted, and are checked at its end. A row that points at nothing then, and didn't before,
takes everything back. The triggers of the tables are dropped first and made again from their own text, so that none
fires. The numbers that AUTOINCREMENT gives never go back.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from django_snapshots.connectors import sqlite_labels as labels
from django_snapshots.connectors import sqlite_tables as tables_of
from django_snapshots.connectors.single_tables import dangling
from django_snapshots.connectors.sqlite_files import (
    Patience,
    Place,
    open_file,
    open_live,
    open_memory,
    pragma,
    quoted,
)
from django_snapshots.connectors.sqlite_switch import begin, copied
from django_snapshots.connectors.sqlite_tables import LIVE, RESTORED, Shape
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotIntegrityError, SnapshotPreflightError
from django_snapshots.processes import Processes

_BEFORE = "django_snapshots_before"


def _reached(phase: str) -> None:
    """Does nothing; tests put a death, or a long sleep, in its place."""


class RowSwitch:
    """One way for rows into the live database; used to go forward and, with what was kept, back."""

    def __init__(
        self,
        place: Place,
        processes: Processes,
        seconds: float,
        tables: Iterable[str],
        stay: Iterable[str],
        *,
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        """*fence* raises if this attempt has no right to change the live database any more."""
        self._place = place
        self._processes = processes
        self._seconds = seconds
        self._tables = sorted(tables)
        self._stay = frozenset(stay)
        self._fence = fence

    def replace(self, origin: Path, kept: Path, *, label: str = "", without: str = "") -> None:
        """Make the rows of *origin* those of the live tables; what the whole database was is in *kept* afterwards.

        The live database carries *label* then, and every label that it had but for *without*. When this raises, it is
        as it was.
        """
        if label and self._place.path is not None:
            begin(self._place, label, self._fence, self._patience())
            _reached("begun")
        with opened(self._place, origin, self._patience()) as live, self._transaction(live, kept):
            self._fence()
            _reached("locked")
            tables_of.require(self._place, live, self._tables, self._stay)
            if self._place.path is not None:
                # A connection that has begun to write can't be copied from; what it will change isn't changed yet.
                with open_file(self._place) as reader:
                    copied(reader, kept, self._patience(), durably=bool(label))
            _reached("kept")
            self._replace(live)
            labels.write(live, labels.after(labels.read(live), come=label, go=without))
            _reached("replaced")
        _reached("switched")

    @contextlib.contextmanager
    def _transaction(self, live: sqlite3.Connection, kept: Path) -> Iterator[None]:
        """The write lock, and the commit at the end if nothing is raised. What is in memory is copied to *kept* before:
        nobody but this process can write to it."""
        if self._place.path is None:
            if live.in_transaction:
                raise SnapshotConnectorError(
                    f"A transaction is open on {self._place.title}; it was not changed. Restore outside of atomic "
                    "blocks."
                )
            copied(live, kept, self._patience(), durably=False)
        else:
            # Whatever the file's other users chose: a switch must be on the disk as a whole.
            self._patience().execute(live, "PRAGMA synchronous=FULL")
        with _without_foreign_keys(live):
            self._patience().execute(live, "BEGIN IMMEDIATE")
            try:
                yield
                # With a rollback journal it has to wait until those who read have ended.
                self._patience().execute(live, "COMMIT")
            except BaseException:
                if live.in_transaction:
                    live.execute("ROLLBACK")
                raise

    def _replace(self, live: sqlite3.Connection) -> None:
        children = tables_of.children(live, self._tables)
        before = self._note_orphans(live, children)
        for table in self._tables:
            now = tables_of.shape(live, LIVE, table)
            fire = tables_of.triggers(live, table)
            for name, _ in fire:
                live.execute(f"DROP TRIGGER {LIVE}.{quoted(name)}")
            self._copy(live, table, now)
            _move_sequence(live, table, now)
            for _, text in fire:
                live.execute(text)
        found = self._new_orphans(live, children, before)
        live.execute(f"DROP TABLE temp.{_BEFORE}")
        if found:
            raise SnapshotPreflightError(f"{dangling(self._place.alias, found)} It was not changed.")

    def _copy(self, live: sqlite3.Connection, table: str, now: Shape) -> None:
        names = ", ".join(map(quoted, now.names))
        live.execute(f"DELETE FROM {LIVE}.{quoted(table)}")  # noqa: S608 - quoted names, here and below
        # What is brought back may have been damaged before; an index with holes must not say which rows there are.
        live.execute(
            f"INSERT OR ABORT INTO {LIVE}.{quoted(table)} ({names}) "  # noqa: S608
            f"SELECT {names} FROM {RESTORED}.{quoted(table)} NOT INDEXED"
        )
        there, wanted = (
            live.execute(f"SELECT count(*) FROM {schema}.{quoted(table)} NOT INDEXED").fetchone()[0]  # noqa: S608
            for schema in (LIVE, RESTORED)
        )
        if there != wanted:
            raise SnapshotIntegrityError(
                f"{table} of {self._place.title} would have {there} rows and not {wanted}; it was not changed."
            )

    def _note_orphans(self, live: sqlite3.Connection, children: Iterable[str]) -> dict[tuple[str, str, int], int]:
        """Rows that point at nothing already: of which table, at which one, by which key; how many."""
        live.execute(f"CREATE TEMP TABLE {_BEFORE} (child, number, parent, position)")
        for child in children:
            live.execute(f"INSERT INTO temp.{_BEFORE} {_ORPHANS}", [child, child, LIVE])
        return _counted(live.execute(f"{_COUNTED} FROM temp.{_BEFORE} GROUP BY 1, 2, 3"))

    def _new_orphans(
        self, live: sqlite3.Connection, children: Iterable[str], before: dict[tuple[str, str, int], int]
    ) -> dict[str, int]:
        """How many rows point at nothing that didn't, by the foreign key in words."""
        found: dict[str, int] = {}
        for child in children:
            now, new = (
                _counted(live.execute(f"{_COUNTED} FROM ({rows}) GROUP BY 1, 2, 3", [child, child, LIVE]))
                for rows in (_ORPHANS, f"{_ORPHANS} EXCEPT SELECT * FROM temp.{_BEFORE}")  # noqa: S608
            )
            for key, number in now.items():
                # Rows without a number of their own can only be counted.
                if more := max(new.get(key, 0), number - before.get(key, 0)):
                    words = f"the foreign key of {key[0]} to {key[1]}"
                    found[words] = found.get(words, 0) + more
        return found

    def _patience(self) -> Patience:
        return Patience(self._place, self._seconds, self._processes)


_COUNTED = "SELECT child, parent, position, count(*)"
_ORPHANS = "SELECT ? AS child, rowid AS number, parent, fkid AS position FROM pragma_foreign_key_check(?, ?)"


def _counted(rows: Iterable[tuple[str, str, int, int]]) -> dict[tuple[str, str, int], int]:
    return {(child, parent, position): count for child, parent, position, count in rows}


@contextlib.contextmanager
def opened(place: Place, origin: Path, patience: Patience) -> Iterator[sqlite3.Connection]:
    """The live database, with the private file *origin* attached, which can't be changed through it."""
    uri = f"file:{quote(str(origin))}?mode=ro"
    with open_memory(place) if place.path is None else open_live(place) as live:
        # It reads the live schema, too, and a writer that commits without a pause would keep it out.
        patience.execute(live, f"ATTACH '{uri}' AS {RESTORED}")
        try:
            yield live
        finally:
            live.execute(f"DETACH {RESTORED}")


@contextlib.contextmanager
def _without_foreign_keys(live: sqlite3.Connection) -> Iterator[None]:
    """They can be switched off only outside of a transaction."""
    before = pragma(live, "foreign_keys")
    live.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        live.execute(f"PRAGMA foreign_keys={before}")


def _move_sequence(live: sqlite3.Connection, table: str, now: Shape) -> None:
    """The number that AUTOINCREMENT goes on from: the highest of the live table's, the snapshot's and the rows' own."""
    then = tables_of.sequence(live, RESTORED, table)
    if now.counted and then is not None:
        # The row is there: every INSERT into such a table leaves one, also of no rows.
        move = f"UPDATE {LIVE}.sqlite_sequence SET seq = max(seq, ?) WHERE name = ?"  # noqa: S608 - a constant
        live.execute(move, [then, table])
