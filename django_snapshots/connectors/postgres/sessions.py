"""Ends what an earlier attempt has left on the server: its sessions, with their transactions and locks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.bounded import within
from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.access import MAINTENANCE, brief
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.redaction import redact

WAIT_SECONDS = 10.0
"""How long the server may take to end them. A transaction that is rolled back frees its locks at once."""
_CONNECT_SECONDS = 15.0
_POLL_SECONDS = 0.05

# The label says whose they are. The rest keeps to what is ours in any case: an application's name can be anybody's.
_OURS = """
application_name = ANY(%s) AND usename = session_user AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def end_sessions(alias: str, labels: Sequence[str]) -> int:
    """End the sessions on the server of *alias* that carry one of *labels*, and wait until they are gone.

    In any database: a restore works in the target, in the maintenance database and in the new one.

    Returns how many there were. Raises ``SnapshotConnectorError`` if that can't be done within seconds.
    """
    try:
        return within(_CONNECT_SECONDS + WAIT_SECONDS, lambda: _end(alias, labels))
    except TimeoutError:
        raise _failed(alias, labels, "the server does not answer") from None
    except Error as error:
        raise _failed(alias, labels, redact(str(error).strip())) from error


def _end(alias: str, labels: Sequence[str]) -> int:
    """From the maintenance database, where nobody waits for a rename of the target that an attempt has begun; from the
    target where the role may not enter that."""
    try:
        with brief(alias, database=MAINTENANCE) as connection:
            return _end_through(connection, alias, labels)
    except Error:
        with brief(alias) as connection:
            return _end_through(connection, alias, labels)


def _end_through(connection: BaseDatabaseWrapper, alias: str, labels: Sequence[str]) -> int:
    ended: set[tuple[int, str]] = set()
    deadline = time.monotonic() + WAIT_SECONDS
    while remaining := _terminate(connection, labels):
        ended |= remaining
        if time.monotonic() > deadline:
            numbers = ", ".join(str(pid) for pid, _ in sorted(remaining))
            raise _failed(alias, labels, f"after {WAIT_SECONDS:g} seconds the server still has its processes {numbers}")
        time.sleep(_POLL_SECONDS)
    return len(ended)


def _terminate(connection: BaseDatabaseWrapper, labels: Sequence[str]) -> set[tuple[int, str]]:
    """Tell all of them to end, also those that have come since; return those that were there."""
    sql = f"SELECT pid, backend_start::text, pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}"  # noqa: S608
    return {(pid, started) for pid, started, _ in catalog.rows(connection, sql, [list(labels)])}


def _failed(alias: str, labels: Sequence[str], why: str) -> SnapshotConnectorError:
    names = ", ".join(f"'{label}'" for label in labels)
    remedy = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ({names})"  # noqa: S608
    return SnapshotConnectorError(
        f"The sessions that an earlier attempt has left on the server of {alias!r} could not be ended: {why}. They "
        f"may hold locks. Let an administrator of the server run: {remedy}."
    )
