"""Empties a database, except for the tables that must stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.server import (
    LOCKED_IDLE,
    LONGEST,
    Server,
    execute,
    explained,
    names,
    quote,
    rows,
)
from django_snapshots.exceptions import SnapshotBusyError, SnapshotConnectorError
from django_snapshots.redaction import redact

LOCK_WAIT = 60
"""Seconds to wait until nobody works in the tables any more."""


def clear(connection: BaseDatabaseWrapper, db_alias: str, preserved: frozenset[str]) -> None:
    """Drop everything but *preserved* and what belongs to those tables, their triggers.

    Every table is locked before the first is dropped, so a database that is in use is left as it was. Raises
    ``SnapshotBusyError`` then, and ``SnapshotConnectorError`` that says what state the database is in.
    """
    with explained(db_alias, "could not be asked what it holds; it was not touched"):
        execute(connection, f"SET SESSION lock_wait_timeout = {LOCK_WAIT}, wait_timeout = {LOCKED_IDLE}")
        found = _tables(connection, preserved)
    _lock(connection, db_alias, found)
    try:
        execute(connection, "SET SESSION foreign_key_checks = 0")
        for statement in _drop_tables(found):
            execute(connection, statement)
        execute(connection, "UNLOCK TABLES")
        for statement in [*_drop_rest(connection), *_drop_sequences(found)]:
            execute(connection, statement)
        # What comes next here comes after the load.
        execute(connection, f"SET SESSION wait_timeout = {LONGEST}")
    except DatabaseError as error:
        raise SnapshotConnectorError(
            f"The database of {db_alias!r} could not be emptied: {redact(str(error))}. Part of it may be gone: restore "
            "again once the cause is removed, or restore the safety snapshot."
        ) from error


def set_default_collation(connection: BaseDatabaseWrapper, server: Server, metadata: Mapping[str, Any]) -> None:
    """Give the database the default character set and collation that the snapshot's had."""
    charset, collation = metadata.get("charset"), metadata.get("collation")
    if charset and collation and (charset, collation) != (server.charset, server.collation):
        execute(
            connection,
            f"ALTER DATABASE {quote(server.database)} CHARACTER SET = {quote(charset)} COLLATE = {quote(collation)}",
        )


def _tables(connection: BaseDatabaseWrapper, preserved: frozenset[str]) -> dict[str, str]:
    found = rows(
        connection,
        "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY 1",
    )
    return {str(name): str(kind) for name, kind in found if name not in preserved}


def _lock(connection: BaseDatabaseWrapper, db_alias: str, found: Mapping[str, str]) -> None:
    # A view that refers to something that is gone can't be locked; it needs no lock either.
    wanted = [name for name, kind in found.items() if kind not in ("VIEW", "SEQUENCE")]
    if not wanted:
        return
    try:
        execute(connection, f"LOCK TABLES {', '.join(f'{quote(name)} WRITE' for name in wanted)}")
    except DatabaseError as error:
        raise SnapshotBusyError(
            f"The tables of {db_alias!r} could not be locked within {LOCK_WAIT} seconds, because somebody works in "
            f"them; nothing was touched. Stop the writers and restore again. The server says: {redact(str(error))}"
        ) from error


def _drop_tables(found: Mapping[str, str]) -> Iterator[str]:
    for name, kind in found.items():
        if kind not in ("VIEW", "SEQUENCE"):
            yield f"DROP TABLE {quote(name)}"


def _drop_sequences(found: Mapping[str, str]) -> Iterator[str]:
    for name, kind in found.items():
        if kind in ("VIEW", "SEQUENCE"):
            yield f"DROP {kind} {quote(name)}"


def _drop_rest(connection: BaseDatabaseWrapper) -> Iterator[str]:
    for name in names(connection, "SELECT event_name FROM information_schema.events WHERE event_schema = DATABASE()"):
        yield f"DROP EVENT {quote(name)}"
    # A package's body goes with the package.
    routines = rows(
        connection,
        "SELECT routine_type, routine_name FROM information_schema.routines "
        "WHERE routine_schema = DATABASE() AND routine_type <> 'PACKAGE BODY'",
    )
    for kind, name in routines:
        # MariaDB before 11 knows packages only in this mode.
        yield f"SET SESSION sql_mode = '{'ORACLE' if kind == 'PACKAGE' else ''}'"
        yield f"DROP {kind} {quote(name)}"
