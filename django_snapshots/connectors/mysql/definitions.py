"""Reads triggers, views, routines and events in the server's own bytes, and makes and drops them.

As the dump tools do it: each was made under a sql_mode and character sets that belong to its text. SHOW CREATE leaves
the schema's name out where it is the session's own, so a text that was read in one schema can be run in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.record import Definition, text
from django_snapshots.connectors.mysql.server import execute, names, quote, rows, value
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.redaction import redact

ROUTINES = ("FUNCTION", "PROCEDURE", "PACKAGE", "PACKAGE BODY")
GRANT = "GRANT "
"""How the kind of what an account may do with a routine begins; the routine's own follows."""
_GONE = (1049, 1054, 1146, 1305, 1356, 1449, 4091)
"""Of a view or a trigger that is made: a database, a column, a table, a function, a view's own ones, the account that
a view runs as, or a sequence is not there."""
_FORBIDDEN = (1044, 1142, 1143, 1370)
"""Of a view that is made: the account may not read a database, a table or a column, or not call a function."""


def read_definitions(connection: BaseDatabaseWrapper, schema: str) -> list[Definition]:
    """The views, routines and events of *schema*."""
    execute(connection, f"USE {quote(schema)}")
    return [*_views(connection, schema), *_routines(connection, schema), *_events(connection, schema)]


def read_target(connection: BaseDatabaseWrapper, schema: str) -> list[Definition]:
    """As ``read_definitions``, with what accounts may do with single routines: the server drops that with them."""
    return [*read_definitions(connection, schema), *(read_routine_grants(connection, schema) or ())]


def read_routine_grants(connection: BaseDatabaseWrapper, schema: str) -> list[Definition] | None:
    """What accounts may do with single routines of *schema*, but for this one, to which the server gives what it needs
    with each that it makes; ``None`` where it may not read that."""
    try:
        found = rows(
            connection,
            "SELECT user, host, routine_name, routine_type, proc_priv FROM mysql.procs_priv "  # noqa: S608 - hex
            f"WHERE db = {text(schema)} AND CONCAT(user, '@', host) <> CURRENT_USER() ORDER BY 1, 2, 3, 4",
        )
    except DatabaseError as error:
        if error.args[0] not in _FORBIDDEN:
            raise
        return None
    # MariaDB would make an account that is gone by then, and without a password.
    mode = "NO_AUTO_CREATE_USER" if getattr(connection, "mysql_is_mariadb") else ""  # noqa: B009 - only mysql has it
    return [
        Definition(
            kind=f"{GRANT}{routine}", name=str(name), text=_grant(schema, *map(str, row)).encode(), sql_mode=mode
        )
        for row in found
        for _, _, name, routine, _ in (row,)
    ]


def _grant(schema: str, user: str, host: str, name: str, routine: str, rights: str) -> str:
    """A role has no host."""
    words = [word for word in rights.split(",") if word != "Grant"] or ["USAGE"]
    account = f"{quote(user)}@{quote(host)}" if host else quote(user)
    option = " WITH GRANT OPTION" if "Grant" in rights.split(",") else ""
    return f"GRANT {', '.join(words)} ON {routine} {quote(schema)}.{quote(name)} TO {account}{option}"


def read_routines(connection: BaseDatabaseWrapper, schema: str) -> list[Definition]:
    """The functions, procedures and packages of *schema*."""
    execute(connection, f"USE {quote(schema)}")
    return list(_routines(connection, schema))


def read_triggers(connection: BaseDatabaseWrapper, schema: str, tables: Iterable[str]) -> list[Definition]:
    """The triggers of *tables* in *schema*, in the order in which they fire."""
    execute(connection, f"USE {quote(schema)}")
    wanted = set(tables)
    found = []
    for name, table in trigger_tables(connection, schema):
        if table in wanted:
            _, mode, content, charset, collation, database, *_ = _shown(connection, f"TRIGGER {quote(name)}")
            found.append(_definition("TRIGGER", name, content, mode, charset, collation, database, table=table))
    return found


def trigger_tables(connection: BaseDatabaseWrapper, schema: str) -> list[tuple[str, str]]:
    """Names of the triggers of *schema*, each with its table, in the order in which they fire."""
    found = rows(
        connection,
        "SELECT trigger_name, event_object_table FROM information_schema.triggers "  # noqa: S608 - hex
        f"WHERE trigger_schema = {text(schema)} "
        "ORDER BY event_object_table, event_manipulation, action_timing, action_order",
    )
    return [(str(name), str(table)) for name, table in found]


def create(connection: BaseDatabaseWrapper, schema: str, item: Definition) -> None:
    """Make *item* in *schema*, under the settings it was made under."""
    collation = _collation(connection, schema)
    passing = bool(item.database_collation) and item.database_collation != collation
    if passing:
        set_collation(connection, schema, item.database_collation)
    zone = f", time_zone = {text(item.time_zone)}" if item.time_zone else ""
    execute(connection, f"USE {quote(schema)}")
    execute(
        connection,
        f"SET SESSION sql_mode = {text(item.sql_mode)}{zone}, collation_connection = {item.collation}, "
        f"character_set_client = {item.charset}",
    )
    try:
        _run(connection, item.text)
    finally:
        _run(connection, b"SET NAMES utf8mb4")
        execute(connection, "SET SESSION sql_mode = '', time_zone = DEFAULT")
    if passing:
        set_collation(connection, schema, collation)


Lost = list[tuple[Definition, str]]
"""What can't be made because what it stands on is gone, or the account may not read it, with what the server says: to
wait for that could be for ever."""


def create_triggers(connection: BaseDatabaseWrapper, schema: str, triggers: Sequence[Definition]) -> Lost:
    """Make *triggers* in the order in which they fire; return those that can't be made."""
    lost: Lost = []
    for item in triggers:
        try:
            create(connection, schema, item)
        except DatabaseError as error:
            if error.args[0] not in _GONE:
                raise
            lost.append((item, redact(str(error.args[-1]))))
    return lost


def create_views(connection: BaseDatabaseWrapper, schema: str, views: Sequence[Definition]) -> Lost:
    """Make *views*, which may stand on one another in any order; return those that can't be made."""
    left = list(views)
    while left:
        failed: list[tuple[Definition, DatabaseError]] = []
        for item in left:
            try:
                create(connection, schema, item)
            except DatabaseError as error:
                failed.append((item, error))
        if len(failed) == len(left):
            for _, failure in failed:
                if failure.args[0] not in (*_GONE, *_FORBIDDEN):
                    raise failure
            return [(item, redact(str(failure.args[-1]))) for item, failure in failed]
        left = [item for item, _ in failed]
    return []


def drop_triggers(connection: BaseDatabaseWrapper, schema: str, tables: Iterable[str]) -> None:
    """Drop the triggers of *tables* in *schema*."""
    wanted = set(tables)
    for name, table in trigger_tables(connection, schema):
        if table in wanted:
            execute(connection, f"DROP TRIGGER {quote(schema)}.{quote(name)}")


def drop_events(connection: BaseDatabaseWrapper, schema: str, events: Iterable[str]) -> None:
    """Drop those of *events* that *schema* has."""
    for name in events:
        execute(connection, f"DROP EVENT IF EXISTS {quote(schema)}.{quote(name)}")


def drop_views_and_routines(connection: BaseDatabaseWrapper, schema: str) -> None:
    """Drop every view and routine of *schema*."""
    for name in view_names(connection, schema):
        execute(connection, f"DROP VIEW {quote(schema)}.{quote(name)}")
    for kind, name in routine_names(connection, schema):
        # A package's body goes with the package; MariaDB before 11 knows packages only in this mode.
        if kind != "PACKAGE BODY":
            execute(connection, f"SET SESSION sql_mode = '{'ORACLE' if kind == 'PACKAGE' else ''}'")
            execute(connection, f"DROP {kind} {quote(schema)}.{quote(name)}")
    execute(connection, "SET SESSION sql_mode = ''")


def view_names(connection: BaseDatabaseWrapper, schema: str) -> list[str]:
    """The views of *schema*."""
    return names(
        connection,
        f"SELECT table_name FROM information_schema.tables WHERE table_schema = {text(schema)} "  # noqa: S608 - hex
        "AND table_type = 'VIEW' ORDER BY 1",
    )


def routine_names(connection: BaseDatabaseWrapper, schema: str) -> list[tuple[str, str]]:
    """Kinds and names of the routines of *schema*; packages before their bodies."""
    found = rows(
        connection,
        "SELECT routine_type, routine_name FROM information_schema.routines "  # noqa: S608 - hex
        f"WHERE routine_schema = {text(schema)} ORDER BY 1, 2",
    )
    return [(str(kind), str(name)) for kind, name in found]


def event_names(connection: BaseDatabaseWrapper, schema: str) -> list[str]:
    """The events of *schema*."""
    return names(
        connection,
        f"SELECT event_name FROM information_schema.events WHERE event_schema = {text(schema)} ORDER BY 1",  # noqa: S608
    )


def set_collation(connection: BaseDatabaseWrapper, schema: str, collation: str) -> None:
    """Give *schema* another default collation, with its character set."""
    execute(connection, f"ALTER DATABASE {quote(schema)} COLLATE = {quote(collation)}")


def _collation(connection: BaseDatabaseWrapper, schema: str) -> str:
    return str(
        value(
            connection,
            "SELECT default_collation_name FROM information_schema.schemata "  # noqa: S608 - hex
            f"WHERE schema_name = {text(schema)}",
        )
    )


def _views(connection: BaseDatabaseWrapper, schema: str) -> Iterator[Definition]:
    for name in view_names(connection, schema):
        _, content, charset, collation, *_ = _shown(connection, f"VIEW {quote(name)}")
        yield _definition("VIEW", name, content, b"", charset, collation, b"")


def _routines(connection: BaseDatabaseWrapper, schema: str) -> Iterator[Definition]:
    for kind, name in routine_names(connection, schema):
        execute(connection, f"SET SESSION sql_mode = '{'ORACLE' if kind.startswith('PACKAGE') else ''}'")
        _, mode, content, charset, collation, database, *_ = _shown(connection, f"{kind} {quote(name)}")
        if content is None:
            raise SnapshotConnectorError(
                f"The text of {kind.lower()} {name} in {schema} can't be read, so it could not be brought back. Run: "
                "GRANT SELECT ON mysql.proc (GRANT SHOW_ROUTINE ON *.* on MySQL) to the account."
            )
        yield _definition(kind, name, content, mode, charset, collation, database)
    execute(connection, "SET SESSION sql_mode = ''")


def _events(connection: BaseDatabaseWrapper, schema: str) -> Iterator[Definition]:
    for name in event_names(connection, schema):
        _, mode, zone, content, charset, collation, database, *_ = _shown(connection, f"EVENT {quote(name)}")
        yield _definition("EVENT", name, content, mode, charset, collation, database, time_zone=zone.decode())


def _definition(
    kind: str, name: str, content: bytes, mode: bytes, charset: bytes, collation: bytes, database: bytes, **more: str
) -> Definition:
    return Definition(
        kind=kind,
        name=name,
        text=content,
        sql_mode=mode.decode(),
        charset=charset.decode(),
        collation=collation.decode(),
        database_collation=database.decode(),
        **more,
    )


def _shown(connection: BaseDatabaseWrapper, what: str) -> tuple[Any, ...]:
    """The one row of SHOW CREATE, in bytes as the server keeps them."""
    execute(connection, "SET SESSION character_set_results = NULL")
    try:
        return _run(connection, f"SHOW CREATE {what}".encode())[0]
    finally:
        execute(connection, "SET NAMES utf8mb4")


def _run(connection: BaseDatabaseWrapper, statement: bytes) -> Sequence[tuple[Any, ...]]:
    """Run one statement, in exactly these bytes; its rows are bytes too."""
    session = connection.connection
    converter = session.converter
    with connection.wrap_database_errors:
        session.query(statement)
        session.converter = {}
        try:
            result = session.store_result()
            return result.fetch_row(0) if result is not None else ()
        finally:
            session.converter = converter
