"""The server's side of a restore: its process, and what became of its transaction."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.access import brief, connected, explained
from django_snapshots.connectors.postgres.maintenance import execute
from django_snapshots.exceptions import SnapshotConnectorError

_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.05

_AS_LOGGED_IN = "SET LOCAL ROLE NONE"
_WHO = "SELECT json_build_object('pid', pid, 'start', backend_start::text) FROM pg_stat_activity"
_WHO += " WHERE pid = pg_backend_pid()"

WHO = f"SAVEPOINT who;\n{_AS_LOGGED_IN};\n{_WHO};\nROLLBACK TO SAVEPOINT who;\nRELEASE SAVEPOINT who;\n"
"""Asked in a transaction. Only the role that logs in may see when its session began, not one that it assumes."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One process of the server; its number alone may be another's by now."""

    pid: int
    started: str

    @classmethod
    def parse(cls, answer: str) -> Backend:
        """From what the server says to ``WHO``. Raises ``SnapshotConnectorError``."""
        fields = catalog.decoded(answer)
        if fields["start"] is None:
            raise SnapshotConnectorError(
                f"The server does not say when its process {fields['pid']} began, without which it can't be ended for "
                "certain. Let whoever may GRANT pg_read_all_stats to the role that logs in."
            )
        return cls(pid=fields["pid"], started=fields["start"])

    @classmethod
    def of(cls, connection: BaseDatabaseWrapper) -> Backend:
        """The one that serves *connection*, which is in no transaction. Raises ``SnapshotConnectorError``."""
        connection.set_autocommit(False)
        execute(connection, _AS_LOGGED_IN)
        ((answer,),) = catalog.rows(connection, _WHO)
        connection.rollback()
        connection.set_autocommit(True)
        return cls.parse(answer)

    def end(self, alias: str) -> None:
        """End it and wait until it is gone, with its transaction: a server that works on a statement doesn't notice
        that its client is gone, and keeps its locks. A server that doesn't answer is left to itself."""
        with contextlib.suppress(SnapshotConnectorError), explained(alias), brief(alias) as connection:
            self.end_through(connection)

    def end_through(self, connection: BaseDatabaseWrapper) -> None:
        """The same, asked on *connection*, which is the role's that logs in: who only assumes another one's rights may
        neither see nor end it. Raises ``SnapshotConnectorError`` if it is still there after a while."""
        who = "FROM pg_stat_activity WHERE pid = %s AND backend_start = %s::timestamptz"
        parameters = [self.pid, self.started]
        catalog.rows(connection, "SELECT pg_terminate_backend(pid) " + who, parameters)
        _wait_until(lambda: not catalog.rows(connection, "SELECT 1 " + who, parameters))
        if catalog.rows(connection, "SELECT 1 " + who, parameters):
            raise SnapshotConnectorError(f"The server's process {self.pid} does not end.")


def outcome(alias: str, transaction: str) -> str:
    """``committed``, ``aborted`` or, after a while, ``in progress``. Raises ``SnapshotConnectorError``."""
    states: list[str] = []
    sql = "SELECT pg_xact_status(%s::text::xid8)"
    with connected(alias) as connection:

        def ended() -> bool:
            states.append(str(catalog.rows(connection, sql, [transaction])[0][0]))
            return states[-1] != "in progress"

        _wait_until(ended)
    return states[-1]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
