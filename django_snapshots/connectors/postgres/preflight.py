"""What stands in the way of a restore, or will surprise: all of it, found before anything is touched."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog, clearing
from django_snapshots.connectors.postgres.access import connected
from django_snapshots.connectors.postgres.archive import Contents, Entry, read_contents, still_to_create
from django_snapshots.connectors.postgres.clients import major_of
from django_snapshots.connectors.postgres.maintenance import backend_of, session
from django_snapshots.connectors.postgres.quoting import identifier
from django_snapshots.connectors.postgres.strategy import Way, prepared, slots
from django_snapshots.connectors.recorded import texts
from django_snapshots.exceptions import SnapshotError, SnapshotPreflightError
from django_snapshots.replaced import Finding
from django_snapshots.sizes import human_size
from django_snapshots.transfer import RestoreRequest, Source

# Of these pg_restore sets no owner; the schema public is made by initdb.
_UNOWNED = ("ACL ", "COMMENT ", "EXTENSION ", "SCHEMA - public ")
_IN_DATABASE = ("SCHEMA - ", "EXTENSION - ", "PUBLICATION - ")
_INSTEAD = 'Or restore in one transaction: PostgresConnector(strategy="transaction").'
_WAITING = (
    "While it is restored, who writes waits, and at last who reads, too; a transaction that is not ended for a minute "
    "makes the restore fail."
)
# Their types have numbers of their own in each database, and Django looks for these once in a process.
_CACHED_TYPES = frozenset({"hstore", "citext", "postgis"})


@dataclass(kw_only=True)
class Survey:
    """All that was found, and what was read for it."""

    findings: list[Finding] = field(default_factory=list)
    contents: Contents | None = None
    failure: SnapshotError | None = None
    """Why the dump could not be read."""

    def stop(self, texts: Iterable[str]) -> None:
        self.findings.extend(Finding(text=text, stops=True) for text in texts)

    def warn(self, texts: Iterable[str]) -> None:
        self.findings.extend(Finding(text=text, stops=False) for text in texts)

    def require_possible(self, alias: str) -> None:
        """Raise what stops the restore: ``SnapshotPreflightError`` with all of it."""
        if self.failure is not None:
            raise self.failure
        if problems := [finding.text for finding in self.findings if finding.stops]:
            raise SnapshotPreflightError(
                f"{alias!r} can't be restored here, and nothing was touched. {' '.join(problems)}"
            )


def survey(
    alias: str, source: Source, request: RestoreRequest, way: Way, *, client_directory: str | None, owner: bool
) -> Survey:
    """Look at the dump, the server and the target."""
    found = Survey()
    found.stop(engine(alias, source))
    if found.findings:
        return found
    try:
        found.contents = read_contents(alias, source, request.processes, client_directory)
    except SnapshotError as error:
        found.failure = error
        found.stop([str(error)])
    _strategy(found, alias, request, way)
    if any(finding.stops for finding in found.findings) and (way.missing or request.drill):
        return found
    entries = found.contents.entries if found.contents else []
    connecting = session(alias, request.label) if way.missing else connected(alias)
    with connecting as connection:
        _server(found, connection, source, entries, owner=owner)
        if way.new_database:
            found.stop(_superusers_objects(connection, entries))
            found.stop(_room(alias, source, request))
            found.warn(_servers_room(source))
        if not way.missing:
            _target(found, connection, request, way)
    return found


def engine(alias: str, source: Source) -> Iterator[str]:
    """A dump of another engine."""
    engine = source.metadata.get("engine")
    if engine not in (None, "postgresql"):
        yield f"{source.filename} is a dump of {engine}, and {alias!r} is a PostgreSQL database."


def _strategy(found: Survey, alias: str, request: RestoreRequest, way: Way) -> None:
    if way.new_database and way.against:
        if request.drill:
            remedy = 'Grant what is missing, or name another alias for it in SNAPSHOTS["DRILL_DATABASES"].'
            found.stop([f"A drill of {alias!r} needs a database of its own. {' '.join(way.against)} {remedy}"])
        else:
            found.stop([f"A new database can't take the place of {alias!r}. {' '.join(way.against)} {_INSTEAD}"])
    elif way.missing and not way.new_database:
        why = f" {' '.join(way.against)}" if way.against else ""
        found.stop(
            [
                f"The alias {alias!r} has no database: there is no {way.target!r} on the server. Create it, empty, or "
                f"let the role create databases.{why}"
            ]
        )
    elif way.against:
        found.warn(
            [
                f"{alias!r} is restored in one transaction: whoever uses it waits meanwhile, and what is replaced is "
                f"kept only as a safety snapshot. A new database can't take its place. {' '.join(way.against)}"
            ]
        )


def _server(
    found: Survey, connection: BaseDatabaseWrapper, source: Source, entries: Collection[Entry], *, owner: bool
) -> None:
    roles = [name for (name,) in catalog.rows(connection, "SELECT rolname FROM pg_roles")]
    found.stop(standby(connection))
    found.stop(_extensions(connection, entries))
    found.stop(_roles(connection, source, entries, roles, owner=owner))
    found.stop(_forced_policies(connection, source))
    found.warn(_older_server(connection, source))


def _target(found: Survey, connection: BaseDatabaseWrapper, request: RestoreRequest, way: Way) -> None:
    tables = catalog.find_tables(connection, request.preserve_tables)
    found.stop(_dependents(connection, tables))
    found.stop(prepared(connection))
    if way.new_database:
        found.stop(f"{text} {_INSTEAD}" for text in slots(connection))
        _connected(found, connection, way.target)
        found.warn(_cached_types(connection))
    else:
        kept = [*tables, *catalog.owned_sequences(connection, tables)]
        found.stop(_not_droppable(connection, kept))
        found.stop(_not_creatable(connection, found.contents.entries if found.contents else [], kept))
        _lock_table(found, connection, tables)
        found.warn(connected_too(connection, _WAITING))
        found.warn(pooler(connection))
        found.warn(_hidden(connection, tables))
        found.warn(_not_lockable(connection, tables))


def standby(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """A server that only reads."""
    ((standby,),) = catalog.rows(connection, "SELECT pg_is_in_recovery()")
    if standby:
        yield "The server is a standby, which can't be written to; let the alias lead to the primary."


def _older_server(connection: BaseDatabaseWrapper, source: Source) -> Iterator[str]:
    ((version,),) = catalog.rows(connection, "SELECT current_setting('server_version')")
    dumped = source.metadata.get("server_version")
    if dumped and major_of(version) < major_of(str(dumped)):
        yield (
            f"The server is PostgreSQL {version}, and the dump is of {dumped}: what the older one doesn't know makes "
            "the restore fail, and then nothing is changed."
        )


def _extensions(connection: BaseDatabaseWrapper, entries: Collection[Entry]) -> Iterator[str]:
    available = {name for (name,) in catalog.rows(connection, "SELECT name FROM pg_available_extensions")}
    wanted = {entry.extension for entry in entries if entry.extension}
    installed = set(catalog.extensions(connection))
    if missing := sorted(wanted - available - installed):
        yield f"The server lacks the extensions {', '.join(missing)}: install the packages that provide them."


def _roles(
    connection: BaseDatabaseWrapper, source: Source, entries: Collection[Entry], roles: Collection[str], *, owner: bool
) -> Iterator[str]:
    """The roles that are missing, or that nothing may be given to, with the statements that help."""
    told = source.metadata.get("roles")
    needed = {kind: texts(told.get(kind)) if isinstance(told, Mapping) else set() for kind in ("given", "named")}
    owners = {entry.owner(roles) for entry in entries if not entry.rest.startswith(_UNOWNED)} - {""}
    missing = needed["named"] | (needed["given"] | owners if owner else set())
    usable = _usable(connection)
    ((me,),) = catalog.rows(connection, "SELECT current_user::text")
    without = owner
    if missing := missing - set(roles):
        without = owner and not missing & needed["named"]
        statements = [f"CREATE ROLE {identifier(name)}" for name in sorted(missing)]
        statements += [f"GRANT {identifier(name)} TO {identifier(me)}" for name in sorted(missing & owners)]
        yield (
            "The server lacks the roles that own what is in the snapshot, or have rights or policies there: "
            f"{', '.join(sorted(missing))}. Let whoever may run: {'; '.join(statements)}."
        )
    foreign = sorted((owners & set(roles)) - usable) if owner else []
    if foreign:
        statements = [f"GRANT {identifier(name)} TO {identifier(me)}" for name in foreign]
        yield (
            f"The role {me} may not give anything to the roles {', '.join(foreign)}: make it a member of them, or "
            f"restore as a superuser. Let whoever may run: {'; '.join(statements)}."
        )
    if without and (missing or foreign):
        yield "Or restore without owners and grants: --no-owner, or PostgresConnector(owner=False)."


def _usable(connection: BaseDatabaseWrapper) -> set[str]:
    """The roles that this one may make the owner of something."""
    # From 16 on to be a member is not enough.
    ((version,),) = catalog.rows(connection, "SELECT current_setting('server_version_num')::int")
    sql = "SELECT rolname FROM pg_roles WHERE pg_has_role(oid, %s)"
    return {name for (name,) in catalog.rows(connection, sql, ["SET" if version >= 160000 else "MEMBER"])}


def _forced_policies(connection: BaseDatabaseWrapper, source: Source) -> Iterator[str]:
    """Rows that are restored and can't be counted: nobody would know that they are all there."""
    names = sorted(texts(source.metadata.get("forced_policies")))
    ((sees_all, me),) = catalog.rows(
        connection, "SELECT rolsuper OR rolbypassrls, quote_ident(rolname) FROM pg_roles WHERE rolname = current_user"
    )
    if names and not sees_all:
        yield (
            f"The row-level security of {', '.join(names)} is forced on the owner, so the role {me} could not count "
            f"what was restored. Let a superuser ALTER ROLE {me} BYPASSRLS, or restore as one."
        )


def _superusers_objects(connection: BaseDatabaseWrapper, entries: Collection[Entry]) -> Iterator[str]:
    """What only a superuser may create, and a new database lacks."""
    ((superuser,),) = catalog.rows(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    if superuser:
        return
    sql = """
        SELECT v.name::text FROM pg_available_extensions a JOIN pg_available_extension_versions v
            ON v.name = a.name AND v.version = a.default_version WHERE v.superuser AND NOT v.trusted
    """
    hard = {name for (name,) in catalog.rows(connection, sql)}
    if wanted := sorted({entry.extension for entry in entries if entry.extension} & hard):
        yield f"Only a superuser may create the extensions {', '.join(wanted)} in a new database. {_INSTEAD}"
    for kind in ("EVENT TRIGGER", "FOREIGN DATA WRAPPER"):
        if any(entry.rest.startswith(f"{kind} - ") for entry in entries):
            yield f"Only a superuser may create what the dump has: {kind.lower()}s. {_INSTEAD}"


def _room(alias: str, source: Source, request: RestoreRequest) -> Iterator[str]:
    """Room for the private copy of the dump."""
    size = source.metadata.get("content_size")
    if not isinstance(size, int):
        return
    with request.temporary_directory() as directory:
        free = shutil.disk_usage(directory).free
        if free < size:
            yield (
                f"The dump of {alias!r} is {human_size(size)} and is copied to {directory.parent}, where "
                f'{human_size(free)} are free. Make room, or name another place in SNAPSHOTS["TEMPORARY_DIRECTORY"].'
            )


def _servers_room(source: Source) -> Iterator[str]:
    size = source.metadata.get("content_size")
    if isinstance(size, int):
        yield (
            f"The server needs room for a second database beside the one that is there: {human_size(size)} of rows, "
            "and their indexes. Its disk can't be seen from here."
        )


def _dependents(connection: BaseDatabaseWrapper, tables: Collection[int]) -> Iterator[str]:
    if names := catalog.dependents(connection, tables):
        yield (
            f"The tables of django_snapshots stay as they are, but there depends on them: {', '.join(names)}. "
            "Drop what depends on them."
        )


def _connected(found: Survey, connection: BaseDatabaseWrapper, target: str) -> None:
    sql = """
        SELECT a.pid, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
            OR (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
                AND NOT (SELECT rolsuper FROM pg_roles r WHERE r.oid = a.usesysid)
        FROM pg_stat_activity a JOIN pg_database d ON d.oid = a.datid
        WHERE d.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
    """
    others = dict(catalog.rows(connection, sql))
    ((number,),) = catalog.rows(connection, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    if lasting := [pid for pid, may in others.items() if not may]:
        named = ", ".join(catalog.sessions_in(connection, number, lasting))
        found.stop([f"Sessions in {target!r} that the role may not end: {named}. {catalog.HOW_TO_END}"])
    if ended := [pid for pid, may in others.items() if may]:
        named = ", ".join(catalog.sessions_in(connection, number, ended))
        found.warn([f"These sessions in {target!r} will be ended: {named}. What they have not committed is lost."])


def connected_too(connection: BaseDatabaseWrapper, what: str) -> Iterator[str]:
    """Who else is in the database, and *what* that means."""
    ((number, name),) = catalog.rows(
        connection, "SELECT oid::bigint, datname::text FROM pg_database WHERE datname = current_database()"
    )
    if named := catalog.sessions_in(connection, number):
        yield f"These sessions are in {name!r} too: {', '.join(named)}. {what} None of them is ended."


def _cached_types(connection: BaseDatabaseWrapper) -> Iterator[str]:
    if names := sorted(_CACHED_TYPES & catalog.extensions(connection).keys()):
        yield (
            f"The types of {', '.join(names)} get other numbers, which Django asks for once in each process: restart "
            "web servers and workers after the restore."
        )


def _not_droppable(connection: BaseDatabaseWrapper, kept: Collection[int]) -> Iterator[str]:
    if names := clearing.not_droppable(connection, kept):
        ((me,),) = catalog.rows(connection, "SELECT quote_ident(current_user)")
        yield (
            f"The role {me} may not drop what others own: {', '.join(names)}. Make it a member of the owners, or "
            "restore as one that may."
        )


def _not_creatable(connection: BaseDatabaseWrapper, entries: Collection[Entry], kept: Collection[int]) -> Iterator[str]:
    """Rights to create that the role lacks for what the dump has."""
    ((me, database, may),) = catalog.rows(
        connection,
        "SELECT quote_ident(current_user), quote_ident(current_database()), "
        "has_database_privilege(current_database(), 'CREATE')",
    )
    schemas = clearing.schemas_without_create(connection, kept)
    roles = [name for (name,) in catalog.rows(connection, "SELECT rolname FROM pg_roles")]
    left = {"SCHEMA": [*schemas], "EXTENSION": [*catalog.extensions(connection)], "EVENT TRIGGER": []}
    wanted = still_to_create(entries, {**left, "public is mine": False}, roles)
    if not may and any(entry.rest.startswith(_IN_DATABASE) for entry in wanted):
        yield (
            f"The role {me} may not create schemas, extensions or publications: GRANT CREATE ON DATABASE {database} "
            f"TO {me}."
        )
    for schema in sorted(name for name, lacking in schemas.items() if lacking):
        if any(entry.creates_in(schema) for entry in wanted):
            yield (
                f"The role {me} may not create anything in a schema: GRANT CREATE ON SCHEMA {identifier(schema)} "
                f"TO {me}."
            )


def _lock_table(found: Survey, connection: BaseDatabaseWrapper, kept: Collection[int]) -> None:
    """One transaction holds a lock on every relation that it drops or makes; about as many are made as are dropped."""
    # storage/lmgr/lock.c, NLOCKENTS; one lock for each relation, with its indexes and its overflow.
    ((room, each),) = catalog.rows(
        connection,
        "SELECT current_setting('max_locks_per_transaction')::bigint * (1 + sum(setting::bigint)), "
        "current_setting('max_locks_per_transaction')::bigint FROM pg_settings WHERE name IN ('max_connections', "
        "'max_prepared_transactions', 'autovacuum_max_workers', 'max_worker_processes', 'max_wal_senders')",
    )
    sql = f"""
        SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid <> ALL(%s::oid[]) AND c.relpersistence <> 't'
            AND (c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'i', 'I') AND {catalog.USER_SCHEMA}
                 OR n.nspname = 'pg_toast' AND c.oid >= 16384)
    """  # noqa: S608 - made of constants
    ((relations,),) = catalog.rows(connection, sql, [list(kept)])
    needed = 2 * relations
    if needed <= room:
        return
    text = (
        f"One transaction would lock about {needed} relations, and the server has room for {room} locks: set "
        f"max_locks_per_transaction to {-(-needed * int(each) // int(room))} or more and restart the server, or let "
        "the role create databases."
    )
    found.findings.append(Finding(text=text, stops=relations > room))


def pooler(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """Something between the alias and its server."""
    ((pid,),) = catalog.rows(connection, "SELECT pg_backend_pid()")
    if pid != backend_of(connection):
        yield "The alias goes through a pooler; its time limits may end a long transaction. Name the server itself."


def _hidden(connection: BaseDatabaseWrapper, tables: Collection[int]) -> Iterator[str]:
    if names := catalog.hidden_by_policies(connection, tables):
        yield (
            f"Row-level security hides rows of {', '.join(names)} from the role, so that no safety snapshot of them "
            "can be taken. Restore as the owner of these tables, or let a superuser ALTER ROLE ... BYPASSRLS."
        )


def _not_lockable(connection: BaseDatabaseWrapper, tables: Collection[int]) -> Iterator[str]:
    if names := catalog.not_lockable(connection, tables):
        yield (
            f"The role may drop {', '.join(names)}, but not lock them: what somebody writes there after the safety "
            "snapshot and before the restore is lost. Keep writers away, or restore as the owner."
        )
