"""What connectors ask of a database through Django, the same way on every engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from django_snapshots.exceptions import SnapshotConfigurationError


def require_alias(db_alias: str) -> None:
    """Raise ``SnapshotConfigurationError`` unless *db_alias* is a key of ``DATABASES``."""
    if db_alias not in connections:
        known = ", ".join(sorted(connections)) or DEFAULT_DB_ALIAS
        raise SnapshotConfigurationError(f"There is no database alias {db_alias!r} in DATABASES; there is: {known}.")


@contextlib.contextmanager
def own_connection(db_alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A connection to *db_alias* that nobody else uses, from any thread, closed at the end."""
    require_alias(db_alias)
    connection = connections.create_connection(db_alias)
    connection.inc_thread_sharing()
    try:
        yield connection
    finally:
        connection.close()


def applied_migrations(connection: BaseDatabaseWrapper) -> list[str]:
    """The migrations that this database says were applied, as ``app.name``, in the connection's own transaction."""
    recorded = MigrationRecorder(connection).applied_migrations()
    return sorted(f"{app}.{name}" for app, name in recorded)
