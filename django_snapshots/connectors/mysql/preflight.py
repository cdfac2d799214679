"""What stands in the way of a restore, all of it at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.record import Definition
from django_snapshots.connectors.mysql.rights import (
    account,
    grant,
    hidden_routines,
    may_create_functions,
    may_set_definers,
    missing_to_restore,
    read_rights,
)
from django_snapshots.connectors.mysql.scan import Findings, definer_of
from django_snapshots.connectors.mysql.server import Server, definers, explained, has_functions
from django_snapshots.exceptions import SnapshotPreflightError
from django_snapshots.transfer import Source


def require_fit(db_alias: str, source: Source, server: Server) -> None:
    """Raise ``SnapshotPreflightError`` unless a dump of *source*'s server can be loaded into *server*."""
    engine = source.metadata.get("engine")
    if engine is not None and engine != server.engine:
        raise SnapshotPreflightError(
            f"{source.filename} was dumped from {engine}, and {db_alias!r} is on {server.title}: restore it into "
            f"a database on {engine}. Nothing was touched."
        )
    found = re.search(r"(\d+)\.(\d+)", str(source.metadata.get("server_version", "")))
    if found and (int(found[1]), int(found[2])) > server.number:
        raise SnapshotPreflightError(
            f"{source.filename} was dumped from version {source.metadata['server_version']}, and {db_alias!r} is on "
            f"{server.title}, which is older and may not know what is in it: restore it into a server that is as new. "
            "Nothing was touched."
        )


def require_restorable(
    connection: BaseDatabaseWrapper, db_alias: str, server: Server, findings: Findings, preserved: frozenset[str]
) -> None:
    """Raise ``SnapshotPreflightError`` that lists everything that would stop the load half way."""
    with explained(db_alias, "could not be asked for the rights of its user"):
        found = [
            *_in_the_dump(server, findings, preserved),
            *missing_rights(connection, server),
            *not_to_be_made(connection, server, "the dump", findings.definers, functions=findings.functions),
        ]
    if found:
        raise SnapshotPreflightError(f"{db_alias!r} can't be restored, and nothing was touched: {' '.join(found)}")


def require_loadable(db_alias: str, server: Server, findings: Findings) -> None:
    """As ``require_restorable``, where only rows are to come out of what is loaded beside the target."""
    if found := list(_in_the_dump(server, findings, frozenset())):
        raise SnapshotPreflightError(f"{db_alias!r} can't be restored, and nothing was touched: {' '.join(found)}")


def _in_the_dump(server: Server, findings: Findings, preserved: frozenset[str]) -> Iterator[str]:
    if findings.leaves_database:
        yield "The dump chooses, creates or drops a database of its own; only dumps of a single database are taken."
    if both := findings.tables & preserved:
        yield f"The dump replaces tables that must stay as they are: {', '.join(sorted(both))}."
    if findings.longest_line > server.max_allowed_packet:
        yield (
            f"The dump has a statement of {findings.longest_line} bytes, and the server takes "
            f"{server.max_allowed_packet}: raise its max_allowed_packet."
        )


def missing_rights(connection: BaseDatabaseWrapper, server: Server) -> Iterator[str]:
    """What the account may not do or read of the database, and must to replace it; *connection* is in it."""
    rights = read_rights(connection, server)
    if missing := missing_to_restore(rights):
        yield f"{rights.account} lacks {', '.join(missing)}; run: {grant(missing, server, rights)}"
    if hidden := hidden_routines(connection, rights):
        yield f"{rights.account} can't read {hidden}, so what is there could not be replaced."


def not_to_be_made(
    connection: BaseDatabaseWrapper, server: Server, where: str, definers: Collection[str], *, functions: bool
) -> Iterator[str]:
    """Why the account may not create what is *where*: it runs as *definers*, and has *functions* or triggers or not."""
    rights = read_rights(connection, server)
    others = sorted({*definers} - {rights.account, ""})
    if others and not may_set_definers(rights):
        right = "SET USER" if server.mariadb else "SET_USER_ID (SET_ANY_DEFINER from MySQL 8.2)"
        yield (
            f"Views, triggers, routines or events in {where} run as {', '.join(others)}, and {rights.account} may not "
            f"create such; run: GRANT {right} ON *.* TO {account(rights)};"
        )
    if functions and not may_create_functions(connection, rights):
        yield (
            f"There are functions or triggers in {where}, and the server's binary log does not let {rights.account} "
            "create them; run: SET GLOBAL log_bin_trust_function_creators = 1;"
        )


def not_to_be_made_again(connection: BaseDatabaseWrapper, server: Server) -> Iterator[str]:
    """Why what the target itself has could not come back after a switch; *connection* is in it."""
    for said in not_to_be_made(
        connection, server, server.database, definers(connection), functions=has_functions(connection)
    ):
        yield f"{said} Or drop them: without that, what is replaced could not be brought back."


def require_kept(
    connection: BaseDatabaseWrapper, db_alias: str, server: Server, definitions: Sequence[Definition]
) -> None:
    """Raise ``SnapshotPreflightError`` where the account may not create what a kept state has: half-way it would be
    too late to find out."""
    accounts = {definer_of(item.text) for item in definitions}
    functions = any(item.kind in ("FUNCTION", "TRIGGER") for item in definitions)
    if found := list(not_to_be_made(connection, server, "what is kept", accounts, functions=functions)):
        raise SnapshotPreflightError(
            f"What is kept of {db_alias!r} can't be brought back, and nothing was touched: {' '.join(found)}"
        )
