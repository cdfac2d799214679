"""What the tests of the MySQL connector share."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.db import connections

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.mysql import MySQLConnector
from django_snapshots.connectors.mysql.restore import MySQLRestore
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.services import Server

SCHEMA = Path(__file__).parent / "schemas" / "mariadb.sql"


def client(server: Server, alias: str, *options: str, script: bytes = b"") -> bytes:
    """Run the bare client on an alias's database; return what it says."""
    return _run(server, "mariadb", [*options, database(alias)], script)


def bare_dump(server: Server, alias: str, *options: str) -> str:
    """The engine's own dump of a database, less the line that names it and the rows that its event makes."""
    wanted = ["--single-transaction", "--routines", "--triggers", "--events", "--hex-blob", "--dump-history"]
    text = _run(
        server,
        "mariadb-dump",
        [*wanted, "--skip-dump-date", f"--ignore-table-data={database(alias)}.fired", *options, database(alias)],
    ).decode()
    text = re.sub(r"^-- Host: .*$|(?<=for database ').*(?='$)", "", text, flags=re.MULTILINE)
    # A default names the schema of its sequence, and a table that was renamed is quoted in its triggers.
    text = text.replace(f"nextval(`{database(alias).replace('`', '``')}`.", "nextval(")
    return re.sub(r" ON (\w+) FOR EACH ROW", r" ON `\1` FOR EACH ROW", text)


def database(alias: str) -> str:
    return str(connections[alias].settings_dict["NAME"])


def query(alias: str, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on an alias; return its rows, if it gives any."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


def leftovers(alias: str) -> list[str]:
    """The schemas that restores have left on the server of *alias*."""
    return [name for (name,) in query(alias, r"SHOW DATABASES LIKE 'django\_snapshots\_%'")]


def load_schema(server: Server, alias: str) -> None:
    client(server, alias, "--comments", script=SCHEMA.read_bytes())


@contextlib.contextmanager
def dump_request(exclude_tables: frozenset[str] = frozenset()) -> Iterator[DumpRequest]:
    with Processes() as processes:
        yield DumpRequest(processes=processes, temporary_directory=private_directory, exclude_tables=exclude_tables)


def dump(
    alias: str, connector: MySQLConnector | None = None, exclude_tables: frozenset[str] = frozenset()
) -> tuple[bytes, Mapping[str, Any]]:
    """Dump through the streaming tier; return content and metadata."""
    with (
        dump_request(exclude_tables) as request,
        (connector or MySQLConnector()).open_dump(alias, request) as opened,
    ):
        content = b"".join(opened.chunks)
        return content, opened.metadata()


def source(content: bytes, metadata: Mapping[str, Any] | None = None, size: int = 65536) -> Source:
    """A source that gives *content* in chunks of *size* bytes."""

    def read() -> Iterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return Source(filename="default.sql", metadata=metadata or {}, open=read)


def restore(
    alias: str,
    content: Source,
    connector: MySQLConnector | None = None,
    preserve_tables: frozenset[str] = frozenset(),
    mark: str = "",
) -> None:
    """Restore through all four moves."""
    with preparing(alias, content, connector, preserve_tables=preserve_tables, mark=mark) as prepared:
        prepared.check()
        prepared.switch()


@contextlib.contextmanager
def restore_request(**changes: Any) -> Iterator[RestoreRequest]:
    with Processes() as processes:
        yield RestoreRequest(processes=processes, temporary_directory=private_directory, **changes)


@contextlib.contextmanager
def preparing(
    alias: str, content: Source, connector: MySQLConnector | None = None, **changes: Any
) -> Iterator[MySQLRestore]:
    """A prepared restore, discarded at the end."""
    with restore_request(**changes) as request:
        prepared = (connector or MySQLConnector()).prepare(alias, content, request)
        try:
            yield prepared
        finally:
            prepared.discard()


def _run(server: Server, program: str, arguments: list[str], script: bytes = b"") -> bytes:
    command = [
        str(Path(server.bin_directory) / program),
        "--no-defaults",
        f"--host={server.host}",
        f"--port={server.port}",
        f"--user={server.user}",
        "--default-character-set=utf8mb4",
        "--max-allowed-packet=1G",
        *arguments,
    ]
    done = subprocess.run(
        command, input=script, capture_output=True, env={"MYSQL_PWD": server.password or ""}, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout
