"""Fixes the moment that a dump shows, and counts the rows of every table in it.

While every table that knows transactions is locked against writing, two transactions are opened: one here and the dump
tool's. Both then see the same rows, so the counts are the dump's own. The lock ends as soon as the tool's transaction
is known to be open, within seconds; where it can't be had in time the dump goes on without it and the counts are
marked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import cast

from django.db import DatabaseError

from django_snapshots.connectors.facts import applied_migrations
from django_snapshots.connectors.mysql.server import (
    LOCKED_IDLE,
    LONGEST,
    Table,
    count_rows,
    execute,
    explained,
    quote,
    server_connection,
    value,
)
from django_snapshots.connectors.mysql.sessions import Marks

LOCK_WAIT = 3
"""Seconds to wait for the lock; the project's own writers wait behind us as long."""


class Moment:
    """One moment of one database, until it is closed."""

    def __init__(self, db_alias: str, tables: Sequence[Table], label: str) -> None:
        self._alias = db_alias
        self._label = label
        self._tables = tables
        self._stack = contextlib.ExitStack()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="row-counts")
        self._counting: Future[dict[str, int]] | None = None
        self.locked = False
        self.exact = False
        """Whether writers were shut out from before our transaction began until after the tool's had."""
        self.started_at = datetime.now(UTC)
        self.migrations: list[str] = []
        self.longest_line = 0
        """Of the dump, when it has been read; bytes."""

    @property
    def inexact_tables(self) -> list[str]:
        """Tables whose count may differ from the rows in the dump."""
        return [table.name for table in self._tables if not (self.exact and table.transactional)]

    def begin(self) -> None:
        """Take the lock if it can be had, and open our transaction. Raises ``SnapshotConnectorError``."""
        with explained(self._alias, "could not be locked and read"):
            self._locker = self._stack.enter_context(server_connection(self._alias))
            # Before any lock or transaction, so that another worker finds whoever has one.
            self.marks = Marks(self._locker, self._label)
            self._reader = self._stack.enter_context(server_connection(self._alias))
            self.marks.add(self._reader)
            self._lock()
            execute(self._reader, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            execute(self._reader, f"SET SESSION wait_timeout = {LONGEST}")
            self._thread_id = int(value(self._reader, "SELECT CONNECTION_ID()"))
            execute(self._reader, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
            self.started_at = cast(datetime, value(self._reader, "SELECT UTC_TIMESTAMP(6)")).replace(tzinfo=UTC)
            with self._passing():
                self.migrations = applied_migrations(self._reader)

    def release(self, *, tool_has_begun: bool) -> None:
        """End the lock; *tool_has_begun* says that the dump tool's transaction was open by now. Start counting."""
        # A lock whose session was ended meanwhile has let writers in.
        self.exact = self._unlock() and self.locked and tool_has_begun
        self._counting = self._executor.submit(self._count)

    def row_counts(self) -> dict[str, int]:
        """The number of rows of every table; waits for the counting to end. Raises ``SnapshotConnectorError``."""
        assert self._counting is not None  # noqa: S101 - release comes first
        with explained(self._alias, "could not be counted"):
            return self._counting.result()

    def close(self) -> None:
        """End the lock, the counting and the transaction, whatever state they are in."""
        if self._counting is not None and not self._counting.done():
            self._interrupt()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def _lock(self) -> None:
        # A reader of a MyISAM table queues behind a waiting writer, so the dump tool would wait for our own lock; and
        # the rows of such tables are read after it anyway.
        wanted = ", ".join(f"{quote(table.name)} READ" for table in self._tables if table.transactional)
        if not wanted:
            self.locked = True
            return
        execute(self._locker, f"SET SESSION lock_wait_timeout = {LOCK_WAIT}, wait_timeout = {LOCKED_IDLE}")
        try:
            execute(self._locker, f"LOCK TABLES {wanted}")
        except DatabaseError:
            # No right to, or a long transaction in the way: the dump itself needs no lock.
            return
        self.locked = True

    def _unlock(self) -> bool:
        """End the lock; whether it was there until now."""
        try:
            execute(self._locker, "UNLOCK TABLES")
            # It holds the marks until the end of the dump.
            execute(self._locker, f"SET SESSION wait_timeout = {LONGEST}")
        except DatabaseError:
            return False
        return True

    def _count(self) -> dict[str, int]:
        counts = {}
        for table in self._tables:
            with self._passing():
                counts[table.name] = count_rows(self._reader, table.name)
        return counts

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        """Going back to a savepoint gives a table's metadata lock up: no ALTER waits for the whole dump."""
        execute(self._reader, "SAVEPOINT passing")
        yield
        execute(self._reader, "ROLLBACK TO SAVEPOINT passing")

    def _interrupt(self) -> None:
        with contextlib.suppress(Exception), server_connection(self._alias) as connection:
            execute(connection, f"KILL {self._thread_id}")


@contextlib.contextmanager
def moment(db_alias: str, tables: Sequence[Table], label: str) -> Iterator[Moment]:
    """A moment that has begun; closed at the end. Its sessions carry *label*."""
    opened = Moment(db_alias, tables, label)
    try:
        opened.begin()
        yield opened
    finally:
        opened.close()
