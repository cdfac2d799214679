"""Whose an error is: the snapshot's, or that of the machine which was to prove it.

A proof that could not be made is no proof against a snapshot. That a server was away or full, that it refused a right
or a lock, or that a disk had no room, says nothing of what was stored. An error that nobody can place is the
snapshot's: rather one that is not relied on, and is good, than a bad one that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from django.db import Error as DatabaseError

from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
)

_MAY_BE_ITS = (SnapshotConnectorError, SnapshotArtifactError, SnapshotNotFoundError, DatabaseError)
# https://www.postgresql.org/docs/current/errcodes-appendix.html: the connection, a state of the session, a login, a
# conflict with others, a want of resources, an object in use, somebody who intervened, the system, the configuration.
_STATE_CLASSES = ("08", "25", "28", "40", "53", "55", "57", "58", "F0")
_NO_RIGHT = "42501"
_FOLLOWS = "25P02"  # "current transaction is aborted": what failed first is the cause
# https://mariadb.com/kb/en/mariadb-error-codes/: no room, no memory, no right, too many of us, not in time.
_MYSQL_CODES = frozenset(
    {
        *(1021, 1030, 1037, 1038, 1040, 1041, 1044, 1045, 1053, 1114, 1129, 1130, 1135, 1142, 1143, 1158, 1159, 1160),
        *(1161, 1184, 1203, 1205, 1213, 1226, 1227, 1290, 1317, 1419, 1436, 1698, 1836, 1927, 1969, 3024),
        *range(2000, 2060),
    }
)
# PERM, BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL: https://www.sqlite.org/rescode.html
_SQLITE_CODES = frozenset({3, 5, 6, 7, 8, 10, 13, 14, 15})
# What the engines' own programs say on standard error, which is all that is known of them.
_PROGRAM_SAYS = re.compile(
    r"(?:ERROR|FATAL|PANIC): +"
    r"(?:could not (?:extend|write|create(?! (?:unique index|exclusion constraint))|open|fsync|access)"
    r"|out of (?:shared )?memory|permission denied|must be "
    r"|role \S+ does not exist|canceling statement|terminating connection|the database system is|.{0,9}too many"
    r"|remaining connection slots|deadlock detected|cannot execute .{1,40} in a read-only)"
    r"|No space left on device|connection to server|could not connect|server closed the connection"
    r"| was killed by SIG(?:KILL|TERM|INT|HUP)\b"  # the other signals may be what bytes have done to a program
)
# Where the programs begin to quote rows and statements, which may say anything.
_CONTENT = re.compile(r"\b(?:CONTEXT|DETAIL|STATEMENT|HINT|Command was|LINE \d+): ")
_MYSQL_SAYS = re.compile(r"\bERROR (\d{4})\b")


def speaks_against(error: Exception) -> bool:
    """Whether *error*, met while a snapshot was read or restored, is something that is wrong with the snapshot."""
    if isinstance(error, SnapshotIntegrityError):
        return True
    return isinstance(error, _MAY_BE_ITS) and not of_the_machine(error)


def of_the_machine(error: BaseException) -> bool:
    """Whether *error*, or what it was made of, tells of a server, a disk or a right, and not of content."""
    return any(_is_of_the_machine(item) for item in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, SnapshotError):  # some of which are an OSError besides
        return isinstance(error, SnapshotConnectorError) and _told_so(str(error))
    if isinstance(error, OSError | MemoryError):
        return True
    return _refused_by_the_server(error)


def _told_so(text: str) -> bool:
    code = _MYSQL_SAYS.search(text)
    said = _CONTENT.split(text, maxsplit=1)[0]
    return bool(_PROGRAM_SAYS.search(said)) or (code is not None and int(code[1]) in _MYSQL_CODES)


def _refused_by_the_server(error: BaseException) -> bool:
    """By what each driver calls its codes; Django's own errors have a driver's for their cause."""
    driver, name = type(error).__module__.partition(".")[0], type(error).__name__
    if driver in ("psycopg", "psycopg2"):
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if state is None:  # the server has not even answered
            return name in ("OperationalError", "InterfaceError", "ConnectionTimeout", "PoolTimeout")
        return state == _NO_RIGHT or (state != _FOLLOWS and str(state).startswith(_STATE_CLASSES))
    if driver == "MySQLdb":
        code = error.args[0] if error.args else 0
        return name == "InterfaceError" or code in _MYSQL_CODES
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _SQLITE_CODES
