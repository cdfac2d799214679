"""What stands in the way of a restore, found before anything is touched."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.archive import Entry
from django_snapshots.exceptions import SnapshotPreflightError

# Of these pg_restore sets no owner; the schema public is made by initdb.
_UNOWNED = ("ACL ", "COMMENT ", "EXTENSION ", "SCHEMA - public ")


def require_possible(
    connection: BaseDatabaseWrapper, alias: str, entries: Collection[Entry], roles: Collection[str], *, owner: bool
) -> None:
    """Raise ``SnapshotPreflightError`` that says everything that is in the way of restoring *entries*."""
    problems = [*_standby(connection), *_extensions(connection, entries)]
    if owner:
        problems.extend(_owners(connection, entries, roles))
    if problems:
        raise SnapshotPreflightError(f"{alias!r} can't be restored here, and nothing was touched. {' '.join(problems)}")


def _standby(connection: BaseDatabaseWrapper) -> Iterator[str]:
    ((standby,),) = catalog.rows(connection, "SELECT pg_is_in_recovery()")
    if standby:
        yield "The server is a standby, which can't be written to; let the alias lead to the primary."


def _extensions(connection: BaseDatabaseWrapper, entries: Collection[Entry]) -> Iterator[str]:
    available = {name for (name,) in catalog.rows(connection, "SELECT name FROM pg_available_extensions")}
    wanted = {entry.extension for entry in entries if entry.extension}
    installed = set(catalog.extensions(connection))
    if missing := sorted(wanted - available - installed):
        yield f"The server lacks the extensions {', '.join(missing)}: install the packages that provide them."


def _owners(connection: BaseDatabaseWrapper, entries: Collection[Entry], roles: Collection[str]) -> Iterator[str]:
    owners = {owner for entry in entries if (owner := entry.owner(roles)) and not entry.rest.startswith(_UNOWNED)}
    sql = "SELECT rolname FROM pg_roles WHERE pg_has_role(oid, %s)"
    # From 16 on to be a member is not enough.
    ((version,),) = catalog.rows(connection, "SELECT current_setting('server_version_num')::int")
    usable = {name for (name,) in catalog.rows(connection, sql, ["SET" if version >= 160000 else "MEMBER"])}
    if missing := sorted(owners - set(roles)):
        yield f"The server lacks the roles that own what is in the snapshot: {', '.join(missing)}: create them."
    if foreign := sorted((owners & set(roles)) - usable):
        ((role,),) = catalog.rows(connection, "SELECT current_user::text")
        yield f"The role {role} may not give anything to the roles {', '.join(foreign)}: make it a member of them."
    if owners - usable:
        yield "Or restore without owners and grants: PostgresConnector(owner=False)."
