"""Replaces the rows of some tables of a database by those of another schema, and keeps what they were; all else stays.

Who can die when, and what then holds. "Die" is: our process, our session, or the server with everything in its memory.

1. *Before the transaction*: the kept schema is made, with empty tables and a record that is not done. The target is
   untouched.
2. *Locked*: one LOCK TABLES, in a session without autocommit, for writing on the tables, for reading on those that
   point at them or that they point at. It waits for every transaction that has touched one of them. From here to the
   end nobody else reads or writes these tables, or writes those; what else is in the database goes on. It commits what
   was begun before, which is nothing; no statement between it and the end commits.
3. *Kept, replaced, counted, proved*: the rows go into the kept schema; they are deleted and the others put in their
   place, with foreign keys unchecked, so that no row of another table goes along; rows that point at nothing now, and
   didn't, are counted, and any of them takes all back; a row of the record says that it is done.
4. *Committed*: all of that, or none. **Whether the record says done is whether it took place**, after any death of
   the session, the client or the server.

A session that dies loses its locks with its transaction. One whose client sleeps is ended by the server after
``LOCKED_IDLE`` seconds, or by whoever settles the restore; it never connects again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import InterfaceError

from django_snapshots.connectors import single_tables
from django_snapshots.connectors.mysql import row_tables
from django_snapshots.connectors.mysql.exchange import LOCK_WAIT
from django_snapshots.connectors.mysql.record import Rows, done_statement, not_done_statement, record_table
from django_snapshots.connectors.mysql.row_tables import Orphans
from django_snapshots.connectors.mysql.server import LOCKED_IDLE, LONGEST, execute, quote, value
from django_snapshots.exceptions import SnapshotIntegrityError, SnapshotPreflightError


def _reached(phase: str) -> None:
    """Tests put their faults here."""


class RowExchange:
    """One exchange of rows, in one session that never reconnects."""

    def __init__(self, connection: BaseDatabaseWrapper, alias: str, record: Rows) -> None:
        self._connection = connection
        self._alias = alias
        self._record = record
        self._target = record.target

    def forward(self) -> None:
        """Make the rows of the origin those of the target. When this raises, whether the record says done is what it
        has become."""
        record = self._record
        with self._locked() as orphans:
            self._require_same()
            for table in record.tables:
                self._copy(table, self._target, record.home)
            _reached("kept")
            for table in record.tables:
                self._replace(table, record.origin)
            _reached("replaced")
            self._require_no_orphans(orphans)
            execute(self._connection, done_statement(record.home))
            if record.origin_is_kept:
                # It is in the target from the same moment on.
                execute(self._connection, not_done_statement(record.origin))
            _reached("proved")
            execute(self._connection, "COMMIT")
            _reached("committed")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[list[Orphans]]:
        """The locks, and what counts the rows that point at nothing; what isn't committed in it is taken back."""
        keys = row_tables.foreign_keys(self._connection, self._target, self._record.tables)
        orphans = [Orphans(key, n, self._target, self._record.home, self._record.tables) for n, key in enumerate(keys)]
        execute(
            self._connection,
            f"SET SESSION autocommit = 0, foreign_key_checks = 0, lock_wait_timeout = {LOCK_WAIT}, "
            f"innodb_lock_wait_timeout = {LOCK_WAIT}, wait_timeout = {LOCKED_IDLE}, "
            # Columns and their types are the same, so nothing is converted; a zero must not be given the next number.
            "sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'",
        )
        try:
            execute(self._connection, f"LOCK TABLES {', '.join(self._locks(orphans))}")
            _reached("locked")
            yield orphans
        finally:
            self._unlock()

    def _locks(self, orphans: list[Orphans]) -> Iterator[str]:
        record = self._record
        for table in record.tables:
            yield f"{quote(self._target)}.{quote(table)} WRITE"
            yield f"{quote(record.origin)}.{quote(table)} READ"
            yield f"{quote(record.home)}.{quote(table)} WRITE"
        yield f"{record_table(record.home)} WRITE"
        if record.origin_is_kept:
            yield f"{record_table(record.origin)} WRITE"
        # A default that takes the next number of a sequence has it opened.
        for schema, name in row_tables.sequences(self._connection, self._target, record.tables):
            yield f"{quote(schema)}.{quote(name)} WRITE"
        for item in orphans:
            yield from item.locks()

    def _unlock(self) -> None:
        """Take back what isn't committed. A session that is gone has done so."""
        with contextlib.suppress(DatabaseError, InterfaceError):
            execute(self._connection, "ROLLBACK")
            execute(self._connection, "UNLOCK TABLES")
            execute(
                self._connection,
                f"SET SESSION autocommit = 1, foreign_key_checks = 1, sql_mode = '', wait_timeout = {LONGEST}",
            )

    def _require_same(self) -> None:
        """What was looked at before is looked at again: nobody can change a table now."""
        record = self._record
        found = [
            *row_tables.differences(self._connection, self._alias, self._target, record.origin, record.tables),
            *row_tables.differences(self._connection, self._alias, self._target, record.home, record.tables),
            *row_tables.fired(self._connection, self._alias, self._target, record.tables),
        ]
        if found:
            raise SnapshotPreflightError(" ".join(found))

    def _replace(self, table: str, origin: str) -> None:
        execute(self._connection, f"DELETE FROM {quote(self._target)}.{quote(table)}")  # noqa: S608 - quoted
        self._copy(table, origin, self._target)
        there, wanted = (self._count(schema, table) for schema in (self._target, origin))
        if there != wanted:
            raise SnapshotIntegrityError(f"{table} of {self._alias!r} would have {there} rows and not {wanted}.")

    def _copy(self, table: str, origin: str, destination: str) -> None:
        columns = ", ".join(map(quote, row_tables.columns(self._connection, self._target, table)))
        execute(
            self._connection,
            f"INSERT INTO {quote(destination)}.{quote(table)} ({columns}) "  # noqa: S608 - quoted
            f"SELECT {columns} FROM {quote(origin)}.{quote(table)}",
        )

    def _count(self, schema: str, table: str) -> int:
        return int(value(self._connection, f"SELECT COUNT(*) FROM {quote(schema)}.{quote(table)}"))  # noqa: S608

    def _require_no_orphans(self, orphans: list[Orphans]) -> None:
        found = {str(item.key): int(value(self._connection, item.query())) for item in orphans}
        if wrong := {key: number for key, number in found.items() if number}:
            raise SnapshotPreflightError(single_tables.dangling(self._alias, wrong))
