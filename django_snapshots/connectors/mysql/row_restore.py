"""Restores the rows of single tables: these are loaded into a schema beside the database, counted, and then exchanged.

Who can die when, and what then holds, is told in ``row_exchange``; until ``switch`` nothing in the target changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import InterfaceError

from django_snapshots.connectors.mysql import row_tables
from django_snapshots.connectors.mysql.client import find_client
from django_snapshots.connectors.mysql.excerpt import Excerpt
from django_snapshots.connectors.mysql.exchange import LOCK_WAIT
from django_snapshots.connectors.mysql.findings import require_place
from django_snapshots.connectors.mysql.kept import Schemas, kept, settle
from django_snapshots.connectors.mysql.preflight import require_loadable
from django_snapshots.connectors.mysql.record import Label, Rows, Side, create_record, read_record
from django_snapshots.connectors.mysql.rehearsed import Rehearsal
from django_snapshots.connectors.mysql.restore import Build, MySQLRestore, opened, read_dump, require_finished
from django_snapshots.connectors.mysql.row_exchange import RowExchange
from django_snapshots.connectors.mysql.server import execute, explained, quote, without_database
from django_snapshots.connectors.recorded import row_counts, texts
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotPreflightError,
)
from django_snapshots.transfer import RestoreRequest, Source


@dataclass(kw_only=True)
class RowRestore(MySQLRestore):
    """Rows beside a database, and the session that will put them into its tables and never reconnects."""

    tables: tuple[str, ...]

    def exchange(self) -> None:
        """Make the kept schema, and exchange the rows."""
        with explained(self.db_alias, "could not be read before the switch; it was not touched"):
            record = self._recorded()
        self.record = record
        RowExchange(self.connection, self.db_alias, record).forward()

    @property
    def in_between(self) -> str:
        """One transaction."""
        return "Its rows are either those from before or those of the snapshot, and none is lost"

    def _recorded(self) -> Rows:
        """Everything that the exchange needs, and that can't be made within its transaction."""
        connection, origin = self.connection, self.incoming.home
        # Another restore may have begun, and stopped, while this one was built.
        require_finished(connection, self.db_alias, self.target, self.schemas)
        self._require_unsettled()
        # The definitions that are copied below may be locked by somebody, and the server's own patience is a day.
        execute(connection, f"SET SESSION lock_wait_timeout = {LOCK_WAIT}")
        home = self.schemas.keeping(connection, self.mark, origin)
        self.schemas.make(connection, home, self.incoming.charset, self.incoming.collation)
        record = Rows(
            mark=self.mark,
            target=self.target,
            about=self.request.about,
            kept_at=datetime.now(UTC).isoformat(),
            home=home,
            origin=origin,
            origin_is_kept=self.incoming_is_kept,
            tables=self.tables,
        )
        create_record(connection, home, record)
        for table in self.tables:
            execute(connection, f"CREATE TABLE {quote(home)}.{quote(table)} LIKE {quote(self.target)}.{quote(table)}")
        return record

    def _require_unsettled(self) -> None:
        found = read_record(self.connection, self.incoming.home)
        ours = isinstance(found, Label) and found.mark == self.mark
        if not ours and not (self.incoming_is_kept and isinstance(found, Rows) and found.done):
            raise SnapshotBusyError(
                f"What was to be switched into {self.db_alias!r} is gone: somebody has settled this restore meanwhile."
            )


def prepare_rows(
    db_alias: str, source: Source, request: RestoreRequest, client_directory: str | None, schemas: Schemas
) -> RowRestore:
    """Prove the dump, look for everything that stands in the way, and load the tables beside the target."""
    tables = tuple(sorted(request.tables))
    with opened(db_alias, request) as (sessions, connection, marks, mark, target):
        with explained(db_alias, "could not be asked what it holds"):
            server = without_database(connection, db_alias, target)
            require_place(connection, db_alias, server, source, request, schemas)
            client = find_client(server, client_directory, request.processes)
            dumped = read_dump(db_alias, source)
            require_loadable(db_alias, server, dumped)
            _require(db_alias, row_tables.refusals(
                connection, db_alias, target, tables, request.preserve_tables, dumped.tables
            ))  # fmt: skip
            home = schemas.building(connection, mark)
            build = Build(db_alias, source, request, server, client, schemas, connection, marks, mark, target, home)
            try:
                incoming = _loaded(build, tables)
                _require(db_alias, row_tables.differences(connection, db_alias, target, home, tables))
            except BaseException:
                with contextlib.suppress(DatabaseError, InterfaceError, SnapshotError):
                    settle(db_alias, mark, schemas)
                raise
        return RowRestore(
            db_alias=db_alias,
            request=request,
            mark=mark,
            target=target,
            schemas=schemas,
            sessions=sessions,
            connection=connection,
            incoming=incoming,
            counts=_counts(source, tables),
            tables=tables,
        )


def prepare_rows_undo(db_alias: str, mark: str, request: RestoreRequest, schemas: Schemas) -> RowRestore:
    """Prepare to exchange rows with those that the restore *mark* has replaced."""
    with opened(db_alias, request) as (sessions, connection, _, own_mark, target):
        with explained(db_alias, "could not be asked what is kept beside it"):
            record = kept(connection, db_alias, target, mark, schemas)
            require_finished(connection, db_alias, target, schemas)
            assert isinstance(record, Rows)  # noqa: S101 - whoever calls has looked
            _require(db_alias, _in_the_way(connection, db_alias, record, request))
        return RowRestore(
            db_alias=db_alias,
            request=replace(request, tables=frozenset(record.tables)),
            mark=own_mark,
            target=target,
            schemas=schemas,
            sessions=sessions,
            connection=connection,
            incoming=_side(connection, record.home),
            incoming_is_kept=True,
            counts={},
            tables=tuple(record.tables),
        )


def _in_the_way(connection: BaseDatabaseWrapper, db_alias: str, record: Rows, request: RestoreRequest) -> Iterable[str]:
    target, tables, there = record.target, record.tables, row_tables.loaded(connection, record.home)
    yield from row_tables.refusals(connection, db_alias, target, tables, request.preserve_tables, there)
    yield from row_tables.differences(connection, db_alias, target, record.home, tables)


def _loaded(build: Build, tables: Collection[str]) -> Side:
    build.begin()
    build.load(Rehearsal(build.home)(Excerpt(tables)(build.source.open())))
    if missing := sorted(set(tables) - set(row_tables.loaded(build.connection, build.home))):
        raise SnapshotConnectorError(
            f"The dump of {build.db_alias!r} says that it has {', '.join(missing)}, and they could not be told from "
            "what else is in it. Restore the whole into a database of another name, and copy the rows from there."
        )
    return _side(build.connection, build.home)


def _side(connection: BaseDatabaseWrapper, home: str) -> Side:
    charset, collation = row_tables.collation_of(connection, home)
    return Side(home=home, charset=charset, collation=collation, tables={})


def _counts(source: Source, tables: Collection[str]) -> dict[str, int]:
    inexact = texts(source.metadata.get("row_counts_inexact_tables"))
    counted = row_counts(source.metadata)
    return {name: number for name, number in counted.items() if name in tables and name not in inexact}


def _require(db_alias: str, refusals: Iterable[str]) -> None:
    if found := list(refusals):
        raise SnapshotPreflightError(f"{db_alias!r} can't be restored, and nothing was touched: {' '.join(found)}")
