"""What the tests of the PostgreSQL connector share."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from django.db import connections

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.postgres import PostgresConnector
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, Prepared, RestoreRequest, Source
from tests.databases import postgres_cursor
from tests.services import Server


def execute(server: Server, alias: str, *statements: str) -> None:
    """Run *statements* as the server's superuser in the database of *alias*, each committed."""
    with postgres_cursor(server, connections[alias].settings_dict["NAME"]) as cursor:
        for statement in statements:
            cursor.execute(statement)


def fetch(server: Server, alias: str, statement: str) -> list[tuple[object, ...]]:
    """The rows of *statement*, asked as the superuser."""
    with postgres_cursor(server, connections[alias].settings_dict["NAME"]) as cursor:
        return cursor.execute(statement).fetchall()


def text_of(server: Server, alias: str) -> str:
    """What ``pg_dump`` says of the whole database, without its random tokens."""
    name = connections[alias].settings_dict["NAME"]
    command = [f"{server.bin_directory}/pg_dump", "-h", server.host, "-p", str(server.port)]
    text = subprocess.run(
        [*command, "-U", server.user, name], env={"PGPASSWORD": server.password}, capture_output=True, check=True
    ).stdout.decode()
    return re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)


def take(connector: PostgresConnector, alias: str, path: Path, **request: object) -> Source:
    """Dump *alias* to *path* through the streaming tier; return it as a restore would get it."""
    with (
        Processes() as processes,
        connector.open_dump(
            alias, DumpRequest(processes=processes, temporary_directory=private_directory, **request)
        ) as dump,
    ):
        with path.open("wb") as file:
            file.writelines(dump.chunks)
        metadata = dump.metadata()
    return Source(filename=path.name, metadata=metadata, open=lambda: read(path))


def read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(65536):
            yield chunk


@contextlib.contextmanager
def prepared(connector: PostgresConnector, alias: str, source: Source, **request: object) -> Iterator[Prepared]:
    """A restore of *alias* up to its COMMIT."""
    with Processes() as processes:
        request.setdefault("processes", processes)
        restoring = connector.prepare(alias, source, RestoreRequest(temporary_directory=private_directory, **request))
        try:
            yield restoring
        finally:
            restoring.discard()


def put_back(connector: PostgresConnector, alias: str, source: Source, **request: object) -> None:
    """Restore *alias* through the four moves."""
    with prepared(connector, alias, source, **request) as restoring:
        restoring.check()
        restoring.switch()


class InOneTransaction(PostgresConnector):
    """As a role has it that may not make databases; named in a project's settings."""

    def __init__(self) -> None:
        super().__init__(strategy="transaction")
