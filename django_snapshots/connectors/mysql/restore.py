"""Restores one database: everything that could stand in the way is looked for first, because the load is not atomic."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.clearing import clear, set_default_collation
from django_snapshots.connectors.mysql.client import Client, find_client
from django_snapshots.connectors.mysql.options import connection_options, secrets_in, write_option_file
from django_snapshots.connectors.mysql.preflight import require_fit, require_restorable
from django_snapshots.connectors.mysql.scan import Findings, scan, split, without_sandbox
from django_snapshots.connectors.mysql.server import (
    LONGEST,
    Server,
    count_rows,
    explained,
    read_server,
    server_connection,
)
from django_snapshots.connectors.mysql.sessions import Marks
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError, SnapshotIntegrityError
from django_snapshots.processes import Tool
from django_snapshots.redaction import redact
from django_snapshots.transfer import RestoreRequest, Source

_LOAD_LOCK_WAIT = 600
_MAX_PACKET = "1G"


@dataclass(frozen=True, kw_only=True)
class MySQLRestore:
    """A proved dump and the database that it will be loaded into."""

    db_alias: str
    source: Source
    request: RestoreRequest
    server: Server
    client: Client
    findings: Findings

    def check(self) -> None:
        """Look once more whether the target is there and fits; nothing was built beside it that could be compared."""
        with server_connection(self.db_alias) as connection:
            require_fit(self.db_alias, self.source, read_server(connection, self.db_alias))

    def switch(self) -> None:
        """Empty the database, load the dump, count its rows. Raises ``SnapshotError`` that says what state it is in."""
        with server_connection(self.db_alias) as connection, self.request.temporary_directory() as directory:
            with explained(self.db_alias, "could not be asked about its sessions; it was not touched"):
                marks = Marks(connection, self.request.label)
            clear(connection, self.db_alias, self.request.preserve_tables)
            try:
                set_default_collation(connection, self.server, self.source.metadata)
                self._load(connection, directory, marks)
            except SnapshotError as error:
                raise type(error)(f"{error} {self._way_back()}") from error
            except DatabaseError as error:
                raise SnapshotConnectorError(
                    f"The restore of {self.db_alias!r} failed: {redact(str(error))}. {self._way_back()}"
                ) from error

    def roll_back(self) -> None:
        """Not possible yet: what the database was is gone."""
        raise SnapshotConnectorError(
            f"The restore of {self.db_alias!r} can't be rolled back: its previous content was replaced. "
            "Restore the safety snapshot."
        )

    def discard(self) -> None:
        """Nothing was built beside the database."""

    def _load(self, connection: BaseDatabaseWrapper, directory: Path, marks: Marks) -> None:
        options = connection_options(
            connection.get_connection_params(), oracle=self.client.oracle, encrypted=self.server.encrypted
        )
        option_file = write_option_file(directory, options)
        loader = _Loader(self, option_file, secrets_in(options), directory / "said", marks)
        end = self.findings.length if self.findings.events_at is None else self.findings.events_at
        content, events = split(self.source.open(), end)
        loader.run(content)
        self._compare_counts(connection)
        if self.findings.events_at is None:
            # Reading on to the end proves the digests of the bytes that were loaded.
            for _ in events:
                pass
        else:
            loader.run(events)

    def _compare_counts(self, connection: BaseDatabaseWrapper) -> None:
        inexact = set(self.source.metadata.get("row_counts_inexact_tables", ()))
        expected = {
            name: count for name, count in self.source.metadata.get("row_counts", {}).items() if name not in inexact
        }
        wrong = []
        with explained(self.db_alias, "could not be counted after the load"):
            for name, count in expected.items():
                if (found := count_rows(connection, name)) != count:
                    wrong.append(f"{name} has {found} rows and not {count}")
        if wrong:
            raise SnapshotIntegrityError(f"The load of {self.db_alias!r} is not whole: {'; '.join(wrong)}.")

    def _way_back(self) -> str:
        return (
            f"The database {self.server.database} now holds an incomplete load: neither what it was nor the snapshot. "
            "Remove the cause and restore again, or restore the safety snapshot."
        )


@dataclass(frozen=True)
class _Loader:
    """Runs the client over statements, to their proven end."""

    restore: MySQLRestore
    option_file: Path
    secrets: Sequence[str]
    said: Path
    marks: Marks

    def run(self, chunks: Iterator[bytes]) -> None:
        """Execute *chunks*. Raises ``SnapshotConnectorError``, or what *chunks* raises."""
        # Only a client that has come to the end in good order, outside any statement or string, says this last word.
        token = secrets.token_hex(16)
        with self.said.open("wb") as said, self._start(said.fileno()) as tool:
            try:
                for chunk in without_sandbox(chunks):
                    _write(tool, chunk)
                _write(tool, f"\nDELIMITER ;\nSELECT '{token}';\n".encode())
                tool.stdin.close()
            except BrokenPipeError:
                tool.wait()
                raise self._failed(tool) from None
            if tool.wait() != 0:
                raise self._failed(tool)
        if token.encode() not in self.said.read_bytes()[-1024:]:
            raise self._failed(tool, "did not come to the end of the dump")

    def _start(self, stdout: int) -> Tool:
        command: list[str | Path] = [
            self.restore.client.path,
            f"--defaults-file={self.option_file}",
            "--batch",
            "--skip-column-names",
            "--binary-mode",
            "--comments",
            "--skip-reconnect",
            "--local-infile=0",
            "--loose-sandbox",
            # The statement that failed holds somebody's rows; its line number says enough.
            "--loose-skip-print-query-on-error",
            "--default-character-set=utf8mb4",
            f"--max-allowed-packet={_MAX_PACKET}",
            f"--init-command={self._session()}",
            f"--database={self.restore.server.database}",
        ]
        return self.restore.request.processes.start(command, stdin=subprocess.PIPE, stdout=stdout, secrets=self.secrets)

    def _session(self) -> str:
        limits = f"lock_wait_timeout = {_LOAD_LOCK_WAIT}, wait_timeout = {LONGEST}"
        unlimited = ", max_statement_time = 0" if self.restore.server.mariadb else ""
        return f"SET SESSION {limits}{unlimited}{self.marks.assignment()}"

    def _failed(self, tool: Tool, how: str = "") -> SnapshotConnectorError:
        what = f"{tool.name} {how}; {tool.explain()}" if how else tool.explain()
        return SnapshotConnectorError(f"The load of {self.restore.db_alias!r} failed: {what}.")


def _write(tool: Tool, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[tool.stdin.write(view) :]


def prepare_restore(
    db_alias: str, source: Source, request: RestoreRequest, client_directory: str | None
) -> MySQLRestore:
    """Look for everything that stands in the way, and read the whole dump once. Changes nothing."""
    with server_connection(db_alias) as connection:
        server = read_server(connection, db_alias)
        require_fit(db_alias, source, server)
        client = find_client(server, client_directory, request.processes)
        findings = scan(source.open())
        if not findings.complete:
            raise SnapshotIntegrityError(
                f"{source.filename} is not a whole dump: its last line is not {'-- Dump completed'!r}. "
                f"{db_alias!r} was not touched."
            )
        require_restorable(connection, db_alias, server, findings, request.preserve_tables)
    return MySQLRestore(
        db_alias=db_alias, source=source, request=request, server=server, client=client, findings=findings
    )
