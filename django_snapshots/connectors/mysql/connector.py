"""The connector for MySQL and MariaDB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from django_snapshots.connectors.file_tier import FileTier
from django_snapshots.connectors.mysql import circumstances, examining, sessions, views
from django_snapshots.connectors.mysql.client import find_dump_tool
from django_snapshots.connectors.mysql.dump import (
    DumpPlan,
    begin_dump,
    dump_chunks,
    event_names,
    history_of,
    require_left_out,
    warnings_of,
)
from django_snapshots.connectors.mysql.findings import findings
from django_snapshots.connectors.mysql.kept import Schemas, beside, kept, remove, require_whole, serving, settle
from django_snapshots.connectors.mysql.moment import Moment, moment
from django_snapshots.connectors.mysql.options import connection_options, secrets_in, write_option_file
from django_snapshots.connectors.mysql.record import Rows
from django_snapshots.connectors.mysql.restore import MySQLRestore, prepare_restore, prepare_undo
from django_snapshots.connectors.mysql.rights import read_rights, require_dump_rights
from django_snapshots.connectors.mysql.row_restore import prepare_rows, prepare_rows_undo
from django_snapshots.connectors.mysql.server import (
    definers,
    execute,
    exists,
    explained,
    is_empty,
    quote,
    read_server,
    server_connection,
    tables,
    without_database,
)
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.replaced import Beside, Finding, Outcome
from django_snapshots.transfer import Dump, DumpRequest, RestoreRequest, Source, Target


class MySQLConnector(FileTier):
    """Dumps with ``mariadb-dump`` or ``mysqldump``, restores with ``mariadb`` or ``mysql``.

    *client_directory* is where these programs are; without it they are looked for on ``PATH`` and in the usual places.
    *dump_alias* is another alias of the same database to dump through, where the first goes through a pooler.

    A restore loads the dump into a schema of its own beside the database, and exchanges the two. Where the account may
    not make schemas, *scratch_database* and *kept_database* name two that are empty.
    """

    def __init__(
        self,
        *,
        client_directory: str | None = None,
        dump_alias: str | None = None,
        scratch_database: str | None = None,
        kept_database: str | None = None,
    ) -> None:
        if (scratch_database is None) != (kept_database is None) or (
            scratch_database is not None and scratch_database == kept_database
        ):
            raise SnapshotConfigurationError(
                "MySQLConnector takes scratch_database and kept_database together, and they must be two databases."
            )
        self._client_directory = client_directory
        self._dump_alias = dump_alias
        self._schemas = Schemas(given=tuple(name for name in (scratch_database, kept_database) if name))

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
        with serving(subject, "could not be looked at") as (connection, database):
            server = without_database(connection, subject, database)
            empty = True
            if exists(connection, database):
                execute(connection, f"USE {quote(database)}")
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
        """Prove the dump, and load it into a schema beside the database, which stays as it is.

        Raises ``SnapshotPreflightError``, ``SnapshotIntegrityError`` or ``SnapshotConnectorError``.
        """
        if request.tables:
            return prepare_rows(subject, source, request, self._client_directory, self._schemas)
        return prepare_restore(subject, source, request, self._client_directory, self._schemas)

    def preflight(self, subject: str, source: Source, request: RestoreRequest) -> Iterator[Finding]:
        """Everything that stands in the way, as far as it shows without reading the dump."""
        with serving(subject, "could not be asked whether it can be restored") as (connection, target):
            server = without_database(connection, subject, target)
            yield from findings(connection, subject, server, source, request, self._schemas)
            yield from circumstances.clients(server, self._client_directory, source, request.processes)

    def keeps(self, subject: str) -> bool:
        """Always: a restore that can't keep what it replaces is refused."""
        return True

    def restores_tables(self, subject: str) -> bool:
        """Always; tables whose rows no transaction replaces are refused by name."""
        return True

    def keeps_tables(self, subject: str) -> bool:
        """Always: in a schema of their own."""
        return True

    def beside(self, subject: str) -> Sequence[Beside]:
        """The schemas that restores have left beside the database."""
        return beside(subject, self._schemas)

    def settle(self, subject: str, mark: str, noted: Mapping[str, Any]) -> Outcome:
        """End the sessions of *mark* and bring its exchange to one of its ends, by the record that it has left."""
        return settle(subject, mark, self._schemas)

    def bring_back(self, subject: str, mark: str, request: RestoreRequest) -> MySQLRestore:
        """Prepare to exchange the database with what the restore *mark* has replaced, or the rows of single tables."""
        with serving(subject, "could not be asked what is kept beside it") as (connection, target):
            record = kept(connection, subject, target, mark, self._schemas)
        if isinstance(record, Rows):
            return prepare_rows_undo(subject, mark, request, self._schemas)
        return prepare_undo(subject, mark, request, self._schemas)

    def remove(self, subject: str, mark: str) -> None:
        """Drop the schemas that carry *mark*; never the database itself."""
        remove(subject, mark, self._schemas)

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
                require_whole(connection, alias, server.database, [table.name for table in found], self._schemas)
                require_left_out(connection, alias, tool, found, request.exclude_data)
                found_views = views.view_names(connection)
                views.require_whole(connection, alias, found_views, request.exclude_tables)
                history = history_of(connection, server, tool, found)
                return DumpPlan(
                    db_alias=alias,
                    server=server,
                    tool=tool,
                    option_file=write_option_file(directory, options),
                    secrets=secrets_in(options),
                    tables=found,
                    exclude_tables=request.exclude_tables,
                    exclude_data=request.exclude_data,
                    history=history,
                    events=bool(event_names(connection)),
                    definers=definers(connection),
                    views=found_views,
                    facts=circumstances.facts(connection),
                    warnings=[
                        *warnings_of(connection, server, tool, found, history),
                        *views.warnings(connection, found_views),
                    ],
                )


def _metadata(plan: DumpPlan, opened: Moment) -> Mapping[str, Any]:
    warnings = list(plan.warnings)
    if not opened.exact:
        warnings.append("The tables could not be locked for the moment of the dump, so row counts are not exact.")
    return {
        "engine": plan.server.engine,
        "server_version": plan.server.version,
        "client_version": plan.tool.version,
        "row_counts": {**opened.row_counts(), **dict.fromkeys(plan.exclude_data, 0)},
        "row_counts_exact": not opened.inexact_tables,
        "row_counts_inexact_tables": opened.inexact_tables,
        "migrations": opened.migrations,
        "definers": list(plan.definers),
        "longest_line": opened.longest_line,
        **plan.facts,
        "charset": plan.server.charset,
        "collation": plan.server.collation,
        "warnings": warnings,
    }


def _where(parameters: Mapping[str, Any]) -> str:
    if socket := parameters.get("unix_socket"):
        return f"at {socket}"
    return f"on {parameters.get('host') or 'localhost'}:{parameters.get('port') or 3306}"
