"""What the connector asks of a server, in connections of its own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import InterfaceError

from django_snapshots.connectors.facts import own_connection
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError
from django_snapshots.redaction import redact

JOURNAL_PREFIX = "django_snapshots_"
"""How the names of the journal's own tables begin; a database that holds nothing else is empty."""
LOCKED_IDLE = 60
"""Seconds of silence after which the server ends a session that holds locks on tables."""
LONGEST = 7 * 24 * 3600
"""Seconds of silence that the server must bear in a session whose turn comes when a dump or a load has ended."""
_BRIEF_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server and the database of it that an alias means."""

    mariadb: bool
    version: str
    number: tuple[int, int]
    database: str
    charset: str
    collation: str
    encrypted: bool
    max_allowed_packet: int
    """Bytes; no statement may be longer."""
    identity: str
    """The same for two aliases of one database."""

    @property
    def engine(self) -> str:
        return "mariadb" if self.mariadb else "mysql"

    @property
    def title(self) -> str:
        return f"{'MariaDB' if self.mariadb else 'MySQL'} {self.version}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that has rows."""

    name: str
    transactional: bool
    """Whether one transaction sees one moment of it; not so for MyISAM, Aria, MEMORY."""
    versioned: bool


@contextlib.contextmanager
def server_connection(db_alias: str, *, database: str | None = None) -> Iterator[BaseDatabaseWrapper]:
    """A connection that sees what the outside programs see; to *database* if one is named, to none if that is empty.

    Without the alias's ``init_command`` and ``sql_mode``: the programs do not have them, and a ``SET ROLE`` there
    would show rights that the dump tool lacks. Raises ``SnapshotConnectorError`` when the server can't be reached.
    """
    with own_connection(db_alias) as connection:
        if connection.vendor != "mysql":
            raise SnapshotConfigurationError(
                f"MySQLConnector can't serve {db_alias!r}: its engine is {connection.vendor}, not MySQL or MariaDB."
            )
        options = dict(connection.settings_dict.get("OPTIONS") or {})
        options.pop("init_command", None)
        options.pop("sql_mode", None)
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options, "ATOMIC_REQUESTS": False}
        if database is not None:
            connection.settings_dict["NAME"] = database
        with explained(db_alias, "can't be reached"):
            connection.ensure_connection()
            connection.set_autocommit(True)
            execute(connection, "SET SESSION sql_mode = ''")
        yield connection


@contextlib.contextmanager
def brief_connection(db_alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A connection for a short question about the server, to no database of it. Raises ``django.db.Error``."""
    with own_connection(db_alias) as connection:
        given = connection.settings_dict.get("OPTIONS") or {}
        options = {key: value for key, value in given.items() if key not in ("init_command", "sql_mode")}
        options.update(dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _BRIEF_SECONDS))
        connection.settings_dict = {**connection.settings_dict, "NAME": "", "OPTIONS": options}
        connection.ensure_connection()
        yield connection


@contextlib.contextmanager
def explained(db_alias: str, what: str) -> Iterator[None]:
    """Turn a database error into a ``SnapshotConnectorError`` that names the alias and has no secret in it."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        said = " ".join(str(item) for item in error.args)
        raise SnapshotConnectorError(f"The database of {db_alias!r} {what}: {redact(said)}") from error


def execute(connection: BaseDatabaseWrapper, sql: str) -> None:
    """Run one statement, in which a ``%`` is just a ``%``."""
    with connection.cursor() as cursor:
        cursor.execute(sql)


def rows(connection: BaseDatabaseWrapper, sql: str) -> list[tuple[Any, ...]]:
    """Run one query; return all of its rows, which must be few."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def value(connection: BaseDatabaseWrapper, sql: str) -> Any:
    """Run one query; return the first column of its only row."""
    return rows(connection, sql)[0][0]


def names(connection: BaseDatabaseWrapper, sql: str) -> list[str]:
    """Run one query; return its first column as strings."""
    return [str(row[0]) for row in rows(connection, sql)]


def quote(name: str) -> str:
    """Quote an identifier, whatever it holds."""
    return f"`{name.replace('`', '``')}`"


def read_server(connection: BaseDatabaseWrapper, db_alias: str) -> Server:
    """Ask the server who it is and which database *db_alias* means."""
    with explained(db_alias, "could not be asked about itself"):
        version, database, packet = rows(connection, "SELECT VERSION(), DATABASE(), @@global.max_allowed_packet")[0]
        if not database:
            raise SnapshotConfigurationError(f"The alias {db_alias!r} names no database; set its NAME.")
        charset, collation = rows(connection, "SELECT @@character_set_database, @@collation_database")[0]
        mariadb = bool(getattr(connection, "mysql_is_mariadb"))  # noqa: B009 - only the mysql backend has it
        found = re.search(r"(\d+)\.(\d+)", version.removeprefix("5.5.5-"))
        return Server(
            mariadb=mariadb,
            version=str(version),
            number=(int(found[1]), int(found[2])) if found else (0, 0),
            database=str(database),
            charset=str(charset),
            collation=str(collation),
            encrypted=bool(rows(connection, "SHOW STATUS LIKE 'Ssl_cipher'")[0][1]),
            max_allowed_packet=int(packet),
            identity=identity(connection, str(database)),
        )


def without_database(connection: BaseDatabaseWrapper, db_alias: str, database: str) -> Server:
    """What the server says of itself; *database*, which the alias means, need not be there."""
    execute(connection, "USE information_schema")
    found = read_server(connection, db_alias)
    if not database:
        raise SnapshotConfigurationError(f"The alias {db_alias!r} names no database; set its NAME.")
    if exists(connection, database):
        execute(connection, f"USE {quote(database)}")
        return read_server(connection, db_alias)
    return replace(found, database=database, identity=identity(connection, database))


def exists(connection: BaseDatabaseWrapper, database: str) -> bool:
    """Whether the server has *database*, as far as the account may see."""
    there = names(connection, "SELECT schema_name FROM information_schema.schemata")
    if value(connection, "SELECT @@lower_case_table_names"):
        return database.lower() in map(str.lower, there)
    return database in there


def identity(connection: BaseDatabaseWrapper, database: str) -> str:
    """What *database* of this server is, in the same words through whatever address the server is asked."""
    known = dict(rows(connection, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uid', 'server_uuid')"))
    place, folds = rows(
        connection, "SELECT CONCAT(@@hostname, ':', @@port, ':', @@datadir), @@lower_case_table_names <> 0"
    )[0]
    # MariaDB's server_uid is made of a network card's address and the port, which two containers on two hosts share; a
    # copied data directory shares MySQL's server_uuid.
    server = ":".join([*known.values(), str(place)])
    return f"mysql:{server}:{database.lower() if folds else database}"


def tables(connection: BaseDatabaseWrapper) -> list[Table]:
    """The tables of the database that have rows, in the order of their names."""
    engines = names(connection, "SELECT engine FROM information_schema.engines WHERE transactions = 'YES'")
    found = rows(
        connection,
        "SELECT table_name, table_type, engine FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY table_name",
    )
    return [
        Table(name=str(name), transactional=engine in engines, versioned=kind == "SYSTEM VERSIONED")
        for name, kind, engine in found
    ]


def count_rows(connection: BaseDatabaseWrapper, table: str) -> int:
    """The number of rows in *table*, by counting them."""
    return int(value(connection, f"SELECT COUNT(*) FROM {quote(table)}"))  # noqa: S608 - the name is quoted


def is_empty(connection: BaseDatabaseWrapper) -> bool:
    """Whether the database holds nothing but the journal's tables: no table, view, sequence, routine or event."""
    found = names(connection, "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()")
    others = sum(
        int(value(connection, f"SELECT COUNT(*) FROM information_schema.{view} WHERE {column} = DATABASE()"))  # noqa: S608
        for view, column in (("routines", "routine_schema"), ("events", "event_schema"))
    )
    return not others and all(name.startswith(JOURNAL_PREFIX) for name in found)


def definers(connection: BaseDatabaseWrapper) -> list[str]:
    """Every account that a view, trigger, routine or event of the database runs as, as ``user@host``."""
    return names(
        connection,
        "SELECT definer FROM information_schema.views WHERE table_schema = DATABASE() "
        "UNION SELECT definer FROM information_schema.triggers WHERE trigger_schema = DATABASE() "
        "UNION SELECT definer FROM information_schema.routines WHERE routine_schema = DATABASE() "
        "UNION SELECT definer FROM information_schema.events WHERE event_schema = DATABASE() ORDER BY 1",
    )


def has_functions(connection: BaseDatabaseWrapper) -> bool:
    """Whether the database has functions or triggers, which a binary log may not let everybody create."""
    return bool(
        value(
            connection,
            "SELECT EXISTS (SELECT 1 FROM information_schema.triggers WHERE trigger_schema = DATABASE()) OR EXISTS "
            "(SELECT 1 FROM information_schema.routines WHERE routine_schema = DATABASE() "
            "AND routine_type = 'FUNCTION')",
        )
    )
