"""What stands in the way of a restore, or will surprise, as far as it shows without reading the dump."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql import circumstances, definitions, row_tables, views
from django_snapshots.connectors.mysql.kept import Schemas, halfway, unfinished
from django_snapshots.connectors.mysql.preflight import (
    missing_rights,
    not_to_be_made,
    not_to_be_made_again,
    require_fit,
)
from django_snapshots.connectors.mysql.record import (
    NEW_PREFIX,
    OLD_PREFIX,
    SCHEMA_PATTERN,
    is_free,
    schema_names,
    tables_in,
    text,
)
from django_snapshots.connectors.mysql.rights import (
    account,
    grant,
    missing_beside,
    missing_for_rows,
    read_rights,
)
from django_snapshots.connectors.mysql.server import Server, exists, names, rows, value
from django_snapshots.connectors.recorded import row_counts, texts
from django_snapshots.exceptions import SnapshotPreflightError
from django_snapshots.replaced import Finding
from django_snapshots.transfer import RestoreRequest, Source

_ATOMIC_RENAME = {"mariadb": (10, 6), "mysql": (8, 0)}


def findings(
    connection: BaseDatabaseWrapper,
    db_alias: str,
    server: Server,
    source: Source,
    request: RestoreRequest,
    schemas: Schemas,
) -> Iterator[Finding]:
    """Everything, not the first thing; changes nothing. *connection* is in the target, if that is there."""
    yield from _fit(db_alias, source, server)
    yield from _places(connection, server, schemas)
    if request.tables:
        yield from _rows_alone(connection, db_alias, server, source, request, schemas)
        return
    yield from _definers(connection, server, source)
    if request.drill:
        return
    yield from map(_stops, missing_rights(connection, server))
    yield from _target(connection, db_alias, server, schemas)
    if exists(connection, server.database):
        yield from map(_stops, not_to_be_made_again(connection, server))
        yield from _broken(connection)
        yield from _routine_grants(connection, server)
        yield from strangers(connection, server, request)
        yield from _company(connection, server)
        yield from circumstances.work(connection, server)
    yield from circumstances.letters(connection, source, request)
    yield from circumstances.limits(connection, server, source)
    yield from circumstances.room(connection, server, source)
    yield from _server(connection, server)


def require_place(
    connection: BaseDatabaseWrapper,
    db_alias: str,
    server: Server,
    source: Source,
    request: RestoreRequest,
    schemas: Schemas,
) -> None:
    """Raise ``SnapshotPreflightError`` with everything of it that stops a restore."""
    found = [item.text for item in findings(connection, db_alias, server, source, request, schemas) if item.stops]
    if found:
        raise SnapshotPreflightError(f"{db_alias!r} can't be restored, and nothing was touched: {' '.join(found)}")


def _stops(text: str) -> Finding:
    return Finding(text=text, stops=True)


def _warns(text: str) -> Finding:
    return Finding(text=text, stops=False)


def _fit(db_alias: str, source: Source, server: Server) -> Iterator[Finding]:
    try:
        require_fit(db_alias, source, server)
    except SnapshotPreflightError as error:
        yield _stops(str(error))


def _rows_alone(
    connection: BaseDatabaseWrapper,
    db_alias: str,
    server: Server,
    source: Source,
    request: RestoreRequest,
    schemas: Schemas,
) -> Iterator[Finding]:
    """What single tables need; whether their columns are the same shows when they are loaded."""
    rights = read_rights(connection, server)
    if missing := missing_for_rows(rights):
        yield _stops(f"{rights.account} lacks {', '.join(missing)}; run: {grant(missing, server, rights)}")
    yield from _target(connection, db_alias, server, schemas)
    there = row_counts(source.metadata) or request.tables
    for refusal in row_tables.refusals(
        connection, db_alias, server.database, request.tables, request.preserve_tables, there
    ):
        yield _stops(refusal)
    if exists(connection, server.database):
        yield from _company(connection, server, "nobody else reads or writes these tables")
        yield from circumstances.work(connection, server)
    yield from circumstances.room(connection, server, source, request.tables)
    if value(connection, "SELECT @@read_only"):
        yield _stops(f"{server.title} is read-only: restore on its primary.")


def _places(connection: BaseDatabaseWrapper, server: Server, schemas: Schemas) -> Iterator[Finding]:
    """Whether there is room beside the target: schemas that we may make, or two empty ones that were given."""
    for name in schemas.given or (f"{NEW_PREFIX}any",):
        rights = read_rights(connection, replace(server, database=name))
        if not (missing := missing_beside(rights)):
            continue
        if schemas.given:
            statement = grant(missing, replace(server, database=name), rights)
            yield _stops(f"{rights.account} lacks {', '.join(missing)} on {name}; run: {statement}")
        else:
            yield _stops(
                f"{rights.account} may not make the schemas that a restore builds in and keeps what it replaces in; "
                f"run: GRANT {', '.join(missing)} ON {SCHEMA_PATTERN} TO {account(rights)}; or name two empty "
                "databases as the connector's scratch_database and kept_database."
            )
    there = schema_names(connection, [*schemas.given, *map(str.lower, schemas.given)])
    for name in schemas.given:
        if name not in there:
            remedy = f"name it {name.lower()}, as the server does" if name.lower() in there else "create it"
            yield _stops(f"The database {name}, which the connector was given to restore by, is missing: {remedy}.")
        elif not is_free(connection, name):
            yield _stops(
                f"The database {name}, which the connector was given to restore by, is not empty. If it holds what an "
                "earlier restore has replaced, remove that first."
            )


def _definers(connection: BaseDatabaseWrapper, server: Server, source: Source) -> Iterator[Finding]:
    accounts = texts(source.metadata.get("definers"))
    yield from map(_stops, not_to_be_made(connection, server, "the dump", accounts, functions=False))


def _target(connection: BaseDatabaseWrapper, db_alias: str, server: Server, schemas: Schemas) -> Iterator[Finding]:
    if server.database.startswith((NEW_PREFIX, OLD_PREFIX)) or server.database in schemas.given:
        yield _stops(f"{db_alias!r} is {server.database}, in which restores build or keep: restore into another one.")
    found = unfinished(connection, server.database, schemas)
    if said := halfway(db_alias, server.database, found, tables_in(connection, server.database)):
        yield _stops(said)


def _broken(connection: BaseDatabaseWrapper) -> Iterator[Finding]:
    found = [("view", *item) for item in views.broken(connection, views.view_names(connection))]
    found += [("trigger", *item) for item in views.broken_triggers(connection)]
    for what, name, said in found:
        yield _warns(
            f"What the {what} {name} stands on is gone ({said}), so an undo of the restore can't make it again. Make "
            "it anew, or drop it."
        )


def _routine_grants(connection: BaseDatabaseWrapper, server: Server) -> Iterator[Finding]:
    routines = definitions.routine_names(connection, server.database)
    if routines and definitions.read_routine_grants(connection, server.database) is None:
        rights = read_rights(connection, server)
        yield _warns(
            f"The server drops what accounts may do with single routines together with these, and {rights.account} "
            "can't read it to give it again: give it again after the restore, or run: GRANT SELECT ON "
            f"mysql.procs_priv TO {account(rights)};"
        )


def strangers(connection: BaseDatabaseWrapper, server: Server, request: RestoreRequest) -> Iterator[Finding]:
    """Foreign keys and views that an exchange would tear, or take to the kept state."""
    journal = request.preserve_tables
    here = text(server.database)
    keys = rows(
        connection,
        "SELECT DISTINCT constraint_schema, table_name, unique_constraint_schema, referenced_table_name "  # noqa: S608
        "FROM information_schema.referential_constraints "
        f"WHERE constraint_schema = {here} OR unique_constraint_schema = {here} ORDER BY table_name",
    )
    for schema, table, other_schema, other in keys:
        if schema != server.database and not str(schema).startswith((NEW_PREFIX, OLD_PREFIX)):
            yield _stops(
                f"The table {schema}.{table} has a foreign key on {other}, which would follow that to the kept state: "
                "drop it, and add it again after the restore."
            )
        if schema == other_schema and (table in journal) != (other in journal):
            yield _stops(f"The table {table} has a foreign key on {other}, and one of them must stay: drop it first.")
    yield from _on_the_journal(connection, server, _naming(request.preserve_tables))


def _naming(journal: frozenset[str]) -> Callable[[str], list[str]]:
    return lambda definition: sorted(name for name in journal if f"`{name}`" in definition)


def _on_the_journal(
    connection: BaseDatabaseWrapper, server: Server, naming: Callable[[str], list[str]]
) -> Iterator[Finding]:
    found_views = rows(
        connection,
        "SELECT table_name, view_definition FROM information_schema.views "  # noqa: S608 - hex
        f"WHERE table_schema = {text(server.database)}",
    )
    for name, definition in found_views:
        if found := naming(str(definition)):
            yield _stops(f"The view {name} reads {', '.join(found)}, which must stay: drop it first.")


def _company(
    connection: BaseDatabaseWrapper, server: Server, then: str = "everybody is told that the tables don't exist"
) -> Iterator[Finding]:
    others = names(
        connection,
        "SELECT DISTINCT user FROM information_schema.processlist "  # noqa: S608 - hex
        f"WHERE db = {text(server.database)} AND id <> CONNECTION_ID() ORDER BY 1",
    )
    if others:
        yield _warns(
            f"{', '.join(others)} is connected to {server.database}. The switch waits for transactions that are open, "
            f"and for a moment {then}."
        )


def _server(connection: BaseDatabaseWrapper, server: Server) -> Iterator[Finding]:
    if value(connection, "SELECT @@read_only"):
        yield _stops(f"{server.title} is read-only: restore on its primary.")
    if server.number < _ATOMIC_RENAME[server.engine]:
        yield _warns(
            f"{server.title} renames many tables one by one: a crash of the server in the middle of the switch leaves "
            "tables hidden until the next sweep has settled it."
        )
