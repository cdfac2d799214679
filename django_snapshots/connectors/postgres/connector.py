"""The connector for PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import facts
from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.identity import database_identity
from django_snapshots.connectors.postgres import catalog, dumping, examining, sessions
from django_snapshots.connectors.postgres.access import connected, exists
from django_snapshots.connectors.postgres.restoring import Restoring
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, Target


class PostgresConnector(FileTier):
    """Dumps with ``pg_dump`` in custom format, uncompressed, as a stream; restores in one transaction.

    While a restore runs, whoever uses the database waits for its end; what can't wait fails.
    """

    def __init__(
        self, *, client_directory: str | None = None, dump_alias: str | None = None, owner: bool = True
    ) -> None:
        """Choose how.

        *client_directory* holds ``pg_dump``, ``pg_restore`` and ``psql``; without it they are looked for on ``PATH``
        and in the usual places. *dump_alias* is dumped through where the alias itself goes through a pooler.
        *owner* restores owners and grants, which the role must have the right to; without it everything belongs to
        the role that restores.
        """
        self._client_directory = client_directory
        self._dump_alias = dump_alias
        self._owner = owner

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Dump the alias *subject*."""
        return dumping.open_dump(subject, request, client_directory=self._client_directory, dump_alias=self._dump_alias)

    def target(self, subject: str) -> Target:
        """Describe the database of the alias *subject*."""
        try:
            with connected(subject) as connection:
                server = catalog.server(connection)
                return Target(
                    name=server.database,
                    description=f'PostgreSQL database "{server.database}" on {_place(connection)}',
                    empty=catalog.is_empty(connection),
                    identity=server.identity,
                )
        except SnapshotConnectorError:
            if exists(subject):
                raise
            return _missing(subject)

    def end_sessions(self, db_alias: str, labels: Sequence[str]) -> int:
        """End the sessions of earlier attempts: those that dump and those that restore."""
        return sum(sessions.end_sessions(alias, labels) for alias in {db_alias, self._dump_alias or db_alias})

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Have ``pg_restore`` list the archive, and look for the manifest's tables in it; needs no server."""
        return examining.examine(subject, source, request, self._client_directory)

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Restore into the database of the alias *subject*, up to the COMMIT."""
        facts.require_alias(subject)
        if not exists(subject):
            raise SnapshotPreflightError(
                f"The alias {subject!r} has no database: there is no {_missing(subject).name!r} on the server. "
                "Create it, empty; this version restores only into a database that is there."
            )
        restoring = Restoring(subject, source, request, client_directory=self._client_directory, owner=self._owner)
        restoring.build()
        return restoring


def _place(connection: BaseDatabaseWrapper) -> str:
    info = connection.connection.info
    return f"{info.host or 'the local socket'}:{info.port}"


def _missing(alias: str) -> Target:
    settings = connections[alias].settings_dict
    host = settings.get("HOST") or "the local socket"
    return Target(
        name=str(settings["NAME"]),
        description=f'PostgreSQL database "{settings["NAME"]}" on {host}, which does not exist and is not created',
        empty=True,
        identity=database_identity(alias),
    )
