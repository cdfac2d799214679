"""Names the sessions of an attempt to a server that knows no ``application_name``, and ends them.

A session is marked by a named lock that has the attempt's label (as a digest, together with the database) and the
session's number in its name: whoever knows the label can ask for each number whether it is marked. Any account may do
that, and may end its own sessions. The lock is held by a session of the same attempt, and is gone when that is.

The dump tool can't be told to take a lock, so its session is looked for, see ``Marks.find``.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence

from django.db import DatabaseError, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.bounded import within
from django_snapshots.connectors.mysql.server import brief_connection, execute, rows, value
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Tool
from django_snapshots.redaction import redact

WAIT_SECONDS = 10.0
"""How long the server may take to end sessions; each rolls its transaction back first."""
_CONNECT_SECONDS = 15.0
_POLL_SECONDS = 0.02
_FIND_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 1.0
_UNKNOWN_THREAD = 1094
_OUR_USER = "user = (SELECT user FROM information_schema.processlist WHERE id = CONNECTION_ID())"
_FROM = f"FROM information_schema.processlist WHERE {_OUR_USER} AND id <> CONNECTION_ID()"
_DUMPS = "SELECT /*!40001 SQL_NO_CACHE */"
"""How the statements begin by which both dump tools read a table's rows, and nobody else."""


def prefix(label: str, database: str) -> str:
    """How the names of an attempt's locks begin; a name may have 64 characters, and goes on with at most 20 digits."""
    digest = hashlib.sha256(f"{label}\0{database.lower()}".encode()).hexdigest()
    return f"django-snapshots {digest[:24]} "


class Marks:
    """The marks of one attempt's sessions in one database, held by *holder*.

    A server that has no named locks (some clusters) leaves the sessions unmarked; nothing else depends on them.
    """

    def __init__(self, holder: BaseDatabaseWrapper, label: str, database: str | None = None) -> None:
        self._holder = holder
        self._prefix = prefix(label, database or str(value(holder, "SELECT DATABASE()")))
        self._known: frozenset[int] = frozenset()
        self._next_look = 0.0
        self._searching = False
        self.usable = self.add(holder)

    def add(self, connection: BaseDatabaseWrapper) -> bool:
        """Mark a session of our own; whether that worked."""
        return self._mark(int(value(connection, "SELECT CONNECTION_ID()")))

    def assignment(self) -> str:
        """What a session marks itself by, as a part of its ``SET``; nothing where that would fail."""
        return f", @django_snapshots = GET_LOCK(CONCAT('{self._prefix}', CONNECTION_ID()), 0)" if self.usable else ""

    def expect(self) -> None:
        """From here on a session that is new may be the dump tool's."""
        self._known = frozenset(self._sessions())
        self._searching = self.usable

    def find(self, tool: Tool) -> None:
        """Look for the session of *tool*, which has begun to dump: it is new and reads a table as dump tools do.

        Where that is true of several, none is marked. A tool that has ended already needs no mark.
        """
        deadline = time.monotonic() + _FIND_SECONDS
        self.look_again()
        while self._searching and tool.running() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            self._next_look = 0.0
            self.look_again()

    def look_again(self) -> None:
        """One more look for it, at most once a second."""
        if not self._searching or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_AGAIN_SECONDS
        found = [number for number, info in self._sessions().items() if number not in self._known and _dumps(info)]
        if len(found) == 1:
            self._searching = not self._mark(found[0])

    def _sessions(self) -> dict[int, str]:
        """The sessions of our user in this database, and what each is doing."""
        sql = f"SELECT id, info FROM information_schema.processlist WHERE {_OUR_USER} AND db = DATABASE()"  # noqa: S608
        with contextlib.suppress(DatabaseError):
            return {int(number): str(info or "") for number, info in rows(self._holder, sql)}
        return {}

    def _mark(self, number: int) -> bool:
        with contextlib.suppress(DatabaseError):
            return bool(value(self._holder, f"SELECT GET_LOCK('{self._prefix}{number}', 0)"))
        return False


def _dumps(info: str) -> bool:
    return info.startswith(_DUMPS)


def end_sessions(alias: str, labels: Sequence[str]) -> int:
    """End the sessions in the database of *alias* that carry one of *labels*, and wait until they are gone.

    Returns how many there were. Raises ``SnapshotConnectorError`` if that can't be done within seconds.
    """
    try:
        return within(_CONNECT_SECONDS + WAIT_SECONDS, lambda: _end(alias, labels))
    except TimeoutError:
        raise _failed(alias, "the server does not answer") from None
    except Error as error:
        raise _failed(alias, redact(" ".join(str(item) for item in error.args))) from error


def _end(alias: str, labels: Sequence[str]) -> int:
    with brief_connection(alias) as connection:
        database = connections[alias].settings_dict["NAME"] or value(connection, "SELECT DATABASE()")
        prefixes = [prefix(label, str(database)) for label in labels]
        found: dict[int, int] = {}
        deadline = time.monotonic() + WAIT_SECONDS
        while remaining := _kill(connection, prefixes, found):
            if time.monotonic() > deadline:
                numbers = ", ".join(map(str, sorted(remaining)))
                raise _failed(alias, f"after {WAIT_SECONDS:g} seconds the server still rolls back in {numbers}")
            time.sleep(_POLL_SECONDS)
        return len(found)


def _kill(connection: BaseDatabaseWrapper, prefixes: Sequence[str], found: dict[int, int]) -> set[int]:
    """Add the marked sessions, with the one that holds each mark, to *found*; end all of these that are still there."""
    there = {int(number) for (number,) in rows(connection, f"SELECT id {_FROM}")}
    for name in prefixes:
        marked = rows(connection, f"SELECT id, IS_USED_LOCK(CONCAT('{name}', id)) {_FROM}")
        # A mark that another account holds is none of ours.
        found.update({int(number): int(holder) for number, holder in marked if holder in there})
    remaining = there & set(found)
    # The holder of a mark comes last: if we die in between, whoever comes next must still find the others.
    for number in sorted(remaining, key=lambda number: found[number] == number):
        _kill_one(connection, number)
    return remaining


def _kill_one(connection: BaseDatabaseWrapper, number: int) -> None:
    try:
        execute(connection, f"KILL {number}")
    except DatabaseError as error:
        if error.args[0] != _UNKNOWN_THREAD:
            raise


def _failed(alias: str, why: str) -> SnapshotConnectorError:
    return SnapshotConnectorError(
        f"The sessions that an earlier attempt has left in the database of {alias!r} could not be ended: {why}. They "
        "may hold locks. Look at SHOW PROCESSLIST as an administrator of the server, and KILL those that don't end."
    )
