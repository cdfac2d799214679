"""The connector for MySQL and MariaDB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.mysql import examining, sessions
from django_snapshots.connectors.mysql.client import find_dump_tool
from django_snapshots.connectors.mysql.dump import (
    DumpPlan,
    begin_dump,
    dump_chunks,
    event_names,
    history_of,
    warnings_of,
)
from django_snapshots.connectors.mysql.moment import Moment, moment
from django_snapshots.connectors.mysql.options import connection_options, secrets_in, write_option_file
from django_snapshots.connectors.mysql.restore import MySQLRestore, prepare_restore
from django_snapshots.connectors.mysql.rights import read_rights, require_dump_rights
from django_snapshots.connectors.mysql.server import (
    definers,
    explained,
    is_empty,
    read_server,
    server_connection,
    tables,
)
from django_snapshots.transfer import Dump, DumpRequest, RestoreRequest, Source, Target


class MySQLConnector(FileTier):
    """Dumps with ``mariadb-dump`` or ``mysqldump``, restores with ``mariadb`` or ``mysql``.

    *client_directory* is where these programs are; without it they are looked for on ``PATH`` and in the usual places.
    *dump_alias* is another alias of the same database to dump through, where the first goes through a pooler.

    A restore is not atomic: it proves the dump first, then empties the database and loads it.
    """

    def __init__(self, *, client_directory: str | None = None, dump_alias: str | None = None) -> None:
        self._client_directory = client_directory
        self._dump_alias = dump_alias

    @contextlib.contextmanager
    def open_dump(self, subject: str, request: DumpRequest) -> Iterator[Dump]:
        """Fix the moment, start the dump tool. Raises ``SnapshotConnectorError``."""
        alias = self._dump_alias or subject
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(request.temporary_directory())
            plan = self._plan(alias, directory, request)
            opened = stack.enter_context(moment(alias, plan.tables, request.label))
            opened.marks.expect()
            tool = stack.enter_context(request.processes.start(plan.content_command(), secrets=plan.secrets))
            chunks = dump_chunks(plan, request.processes, tool, begin_dump(tool, opened), opened)
            stack.callback(chunks.close)
            yield Dump(
                suffix="sql",
                started_at=opened.started_at,
                chunks=chunks,
                metadata=lambda: _metadata(plan, opened),
            )

    def target(self, subject: str) -> Target:
        """Describe the database that a restore would replace. Raises ``SnapshotConnectorError``."""
        with server_connection(subject) as connection:
            server = read_server(connection, subject)
            with explained(subject, "could not be looked at"):
                empty = is_empty(connection)
            where = _where(connection.get_connection_params())
        return Target(
            name=server.database,
            description=f'{"MariaDB" if server.mariadb else "MySQL"} database "{server.database}" {where}',
            empty=empty,
            identity=server.identity,
        )

    def end_sessions(self, db_alias: str, labels: Sequence[str]) -> int:
        """End the sessions of earlier attempts: those that dump and those that restore."""
        return sum(sessions.end_sessions(alias, labels) for alias in {db_alias, self._dump_alias or db_alias})

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> MySQLRestore:
        """Read the whole dump once and prove it, and everything that the load will need. Changes nothing.

        Raises ``SnapshotPreflightError``, ``SnapshotIntegrityError`` or ``SnapshotConnectorError``.
        """
        return prepare_restore(subject, source, request, self._client_directory)

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Read the script to its end mark, and look for the manifest's tables in it."""
        return examining.examine(source, request)

    def _plan(self, alias: str, directory: Path, request: DumpRequest) -> DumpPlan:
        with server_connection(alias) as connection:
            server = read_server(connection, alias)
            with explained(alias, "could not be asked for the rights of its user"):
                require_dump_rights(connection, server, read_rights(connection, server), alias)
            tool = find_dump_tool(server, self._client_directory, request.processes)
            options = connection_options(
                connection.get_connection_params(), oracle=tool.oracle, encrypted=server.encrypted
            )
            with explained(alias, "could not be asked what it holds"):
                found = [table for table in tables(connection) if table.name not in request.exclude_tables]
                history = history_of(connection, server, tool, found)
                return DumpPlan(
                    db_alias=alias,
                    server=server,
                    tool=tool,
                    option_file=write_option_file(directory, options),
                    secrets=secrets_in(options),
                    tables=found,
                    exclude_tables=request.exclude_tables,
                    history=history,
                    events=bool(event_names(connection)),
                    definers=definers(connection),
                    warnings=warnings_of(connection, server, tool, found, history),
                )


def _metadata(plan: DumpPlan, opened: Moment) -> Mapping[str, Any]:
    warnings = list(plan.warnings)
    if not opened.exact:
        warnings.append("The tables could not be locked for the moment of the dump, so row counts are not exact.")
    return {
        "engine": plan.server.engine,
        "server_version": plan.server.version,
        "client_version": plan.tool.version,
        "row_counts": opened.row_counts(),
        "row_counts_exact": not opened.inexact_tables,
        "row_counts_inexact_tables": opened.inexact_tables,
        "migrations": opened.migrations,
        "definers": list(plan.definers),
        "charset": plan.server.charset,
        "collation": plan.server.collation,
        "warnings": warnings,
    }


def _where(parameters: Mapping[str, Any]) -> str:
    if socket := parameters.get("unix_socket"):
        return f"at {socket}"
    return f"on {parameters.get('host') or 'localhost'}:{parameters.get('port') or 3306}"
