"""Which way a database is restored: by a new one and two renames, or by one transaction in the one that is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from django_snapshots.connectors.postgres import catalog, properties
from django_snapshots.connectors.postgres.access import MAINTENANCE, connected, exists
from django_snapshots.connectors.postgres.maintenance import backend_of, session
from django_snapshots.connectors.postgres.quoting import identifier, literal
from django_snapshots.exceptions import SnapshotConnectorError

Strategy = Literal["auto", "new-database", "transaction"]
STRATEGIES = ("auto", "new-database", "transaction")


class Unreachable(SnapshotConnectorError):
    """The database that renames are made from did not let the role in: for good, or for the moment."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """What was decided, and why."""

    new_database: bool
    against: tuple[str, ...]
    """What speaks against a new database, each with what to do; empty if nothing does."""
    target: str
    """The name of the target's database."""
    missing: bool
    """Whether there is no such database."""
    meanwhile: tuple[str, ...] = ()
    """What speaks against the renames now, and goes by itself."""


def choose(alias: str, strategy: Strategy, *, drill: bool, label: str) -> Way:
    """How *alias* is restored with the rights and the server that are there.

    A drill always takes a new database, and asks nothing of the target.
    """
    if drill:
        return Way(new_database=True, against=_against(alias, label), target=_settings_name(alias), missing=True)
    target, missing = _place(alias)
    if strategy == "transaction":
        return Way(new_database=False, against=(), target=target, missing=missing)
    against = (*_against(alias, label), *(() if missing else _target(alias, target)))
    wanted = strategy == "new-database" or not against
    return Way(new_database=wanted, against=against, target=target, missing=missing)


def way_back(alias: str, label: str) -> Way:
    """How what a restore of *alias* has replaced takes its place again: nothing is created, two databases are renamed.

    No preflight of a restore comes before it, so what stops that whichever way is taken speaks against this, too.
    """
    target, missing = _place(alias)
    against: tuple[str, ...] = ()
    meanwhile = () if missing else tuple(_prepared(alias))
    try:
        against = tuple(_server(alias, label))
    except Unreachable as error:
        # There is no other way, and what a server refuses once, because it is full, it need not refuse again.
        meanwhile = (str(error), *meanwhile)
    against = (*against, *(() if missing else _target(alias, target, back=True)))
    return Way(new_database=True, against=against, target=target, missing=missing, meanwhile=meanwhile)


def _prepared(alias: str) -> Iterator[str]:
    with connected(alias) as connection:
        yield from prepared(connection)


def _place(alias: str) -> tuple[str, bool]:
    """The name of the target's database, and whether it is missing."""
    missing = not exists(alias)
    return (_settings_name(alias) if missing else _name(alias)), missing


def _settings_name(alias: str) -> str:
    return str(connections[alias].settings_dict["NAME"])


def _name(alias: str) -> str:
    with connected(alias) as connection:
        return catalog.server(connection).database


def _against(alias: str, label: str) -> tuple[str, ...]:
    """What is in the way of a new database whatever the target is. There are other ways than one that can't be asked
    for."""
    try:
        return tuple(_server(alias, label))
    except Unreachable as error:
        return (str(error),)


def _server(alias: str, label: str) -> Iterator[str]:
    """What is in the way whatever the target is. Raises ``Unreachable``."""
    if not is_psycopg3:
        yield "The driver is psycopg2; install psycopg 3."
        return
    try:
        with session(alias, label) as connection:
            yield from _server_rights(connection)
    except SnapshotConnectorError as error:
        raise Unreachable(
            f"The role can't connect to the database {MAINTENANCE!r} of the server ({error}); GRANT CONNECT."
        ) from error


def _server_rights(connection: BaseDatabaseWrapper) -> Iterator[str]:
    ((role, may, pid),) = catalog.rows(
        connection,
        "SELECT quote_ident(rolname), rolcreatedb OR rolsuper, pg_backend_pid() FROM pg_roles "
        "WHERE rolname = current_user",
    )
    if not may:
        yield f"The role {role} may not create databases: ALTER ROLE {role} CREATEDB."
    if pid != backend_of(connection):
        yield "The alias goes through a pooler; name the server itself."


def _target(alias: str, target: str, *, back: bool = False) -> Iterator[str]:
    """What is in the way with the database that is there, of a new one or, on the way *back*, of the renames alone."""
    if target == MAINTENANCE:
        yield f"The database {MAINTENANCE!r} is the one that a rename is made from; use another one for the project."
        return
    with connected(alias) as connection:
        ((superuser, version, role),) = catalog.rows(
            connection,
            "SELECT rolsuper, current_setting('server_version_num')::int, quote_ident(rolname) FROM pg_roles "
            "WHERE rolname = current_user",
        )
        if not back:
            yield from _labels(connection)
        yield from _subscriptions(connection)
        if not superuser:
            yield from _ownership(connection, role, version)
        if back:
            yield from slots(connection)
        elif not superuser:
            yield from _tablespace(connection, role)
            yield from _extensions(connection)
            yield from _event_triggers(connection)
            yield from _settings(connection, target, role)
            yield from _grantors(connection, target, role, version)
            yield from _public(connection, version)


def _ownership(connection: BaseDatabaseWrapper, role: str, version: int) -> Iterator[str]:
    sql = """
        SELECT quote_ident(pg_get_userbyid(datdba)), pg_has_role(datdba, %s)
        FROM pg_database WHERE datname = current_database()
    """
    ((owner, member),) = catalog.rows(connection, sql, ["SET" if version >= 160000 else "MEMBER"])
    if not member:
        yield f"The role {role} is not the owner of the database: GRANT {owner} TO {role}."


def _tablespace(connection: BaseDatabaseWrapper, role: str) -> Iterator[str]:
    sql = """
        SELECT quote_ident(datname) FROM pg_database WHERE datname = current_database()
            AND dattablespace <> (SELECT dattablespace FROM pg_database WHERE datname = 'template0')
            AND NOT has_tablespace_privilege(dattablespace, 'CREATE')
    """
    for (name,) in catalog.rows(connection, sql):
        yield f"The role {role} may not create a database in the tablespace of {name}: GRANT CREATE ON TABLESPACE."


def _extensions(connection: BaseDatabaseWrapper) -> Iterator[str]:
    sql = """
        SELECT DISTINCT e.extname::text FROM pg_extension e LEFT JOIN pg_available_extension_versions v
            ON v.name = e.extname AND v.version = (SELECT default_version FROM pg_available_extensions a
                                                   WHERE a.name = e.extname)
        WHERE e.oid >= 16384 AND (v.name IS NULL OR v.superuser AND NOT v.trusted) ORDER BY 1
    """
    if names := [name for (name,) in catalog.rows(connection, sql)]:
        yield f"Only a superuser may create the extensions {', '.join(names)} in a new database."


def _event_triggers(connection: BaseDatabaseWrapper) -> Iterator[str]:
    if names := [name for (name,) in catalog.rows(connection, "SELECT evtname::text FROM pg_event_trigger ORDER BY 1")]:
        yield f"Only a superuser may create the event triggers {', '.join(names)} in a new database."


def _settings(connection: BaseDatabaseWrapper, target: str, role: str) -> Iterator[str]:
    """Settings that the role may not make again."""
    made = properties.read(connection, target).settings
    sql = "SELECT name FROM pg_settings WHERE context IN ('superuser', 'superuser-backend')"
    superusers = {name for (name,) in catalog.rows(connection, sql)}
    ((may,),) = catalog.rows(connection, "SELECT rolcreaterole FROM pg_roles WHERE rolname = current_user")
    ((me,),) = catalog.rows(connection, "SELECT current_user::text")
    others = {item.role for item in made if item.role is not None and item.role != me}
    if others and not may:
        yield (
            f"The database has settings of the roles {', '.join(sorted(filter(None, others)))} (ALTER ROLE ... IN "
            f"DATABASE), which {role} may not make again."
        )
    if hard := sorted({item.name for item in made if item.name in superusers}):
        yield f"Only a superuser may make the database's settings {', '.join(hard)} again."


def _grantors(connection: BaseDatabaseWrapper, target: str, role: str, version: int) -> Iterator[str]:
    """Rights that somebody else has granted on, whom the role would have to become to grant them again."""
    made = properties.read(connection, target)
    others = {grant.grantor for grant in made.grants or () if grant.grantor != made.owner}
    sql = "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT pg_has_role(name, %s) ORDER BY 1"
    how = "SET" if version >= 160000 else "MEMBER"
    if names := [name for (name,) in catalog.rows(connection, sql, [sorted(others), how])]:
        statements = "; ".join(f"GRANT {identifier(name)} TO {role}" for name in names)
        yield (
            f"Rights on the database were granted by the roles {', '.join(names)}, as which {role} would have to grant "
            f"them again: {statements}."
        )


def _public(connection: BaseDatabaseWrapper, version: int) -> Iterator[str]:
    """Before version 15 the schema public is the superuser's, and its rights can't be given to another one."""
    sql = """
        SELECT 1 FROM pg_namespace n LEFT JOIN pg_init_privs i ON i.classoid = 'pg_namespace'::regclass
            AND i.objoid = n.oid AND i.objsubid = 0
        WHERE n.nspname = 'public' AND NOT pg_has_role(n.nspowner, 'USAGE') AND n.nspacl IS DISTINCT FROM i.initprivs
    """
    if version < 150000 and catalog.rows(connection, sql):
        yield "The rights on the schema public are the superuser's to give, and they are not a new database's."


def _labels(connection: BaseDatabaseWrapper) -> Iterator[str]:
    sql = """
        SELECT 1 FROM pg_shseclabel l JOIN pg_database d ON d.oid = l.objoid
        WHERE l.classoid = 'pg_database'::regclass AND d.datname = current_database()
    """
    if catalog.rows(connection, sql):
        yield "The database has a security label, which does not go along."


def _subscriptions(connection: BaseDatabaseWrapper) -> Iterator[str]:
    sql = """
        SELECT s.subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
        WHERE d.datname = current_database() ORDER BY 1
    """
    if names := [name for (name,) in catalog.rows(connection, sql)]:
        yield f"The subscriptions {', '.join(names)} belong to the database and would stay with the old one."


def prepared(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """They hold locks, outlive every session, and are part of the database as it is, which can't be renamed."""
    sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1"
    if names := [gid for (gid,) in catalog.rows(connection, sql)]:
        statements = "; ".join(f"ROLLBACK PREPARED {literal(gid)}" for gid in names)
        yield (
            f"The database has prepared transactions: {', '.join(names)}. End each by COMMIT PREPARED or ROLLBACK "
            f"PREPARED, as whoever prepared it or a superuser ({statements})."
        )


def slots(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """What is tied to the database itself and keeps it from being renamed or replaced."""
    sql = "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() ORDER BY 1"
    if names := [name for (name,) in catalog.rows(connection, sql)]:
        statements = "; ".join(f"SELECT pg_drop_replication_slot({literal(name)})" for name in names)
        yield (
            f"The database has replication slots, which would stay with the old one: {', '.join(names)}. End what "
            f"reads them and drop them ({statements})."
        )
