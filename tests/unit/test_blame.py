"""Whose an error is: that a machine could not prove a snapshot is not held against it, and what nobody can place is."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from django.db import InterfaceError, OperationalError, ProgrammingError
from MySQLdb import OperationalError as MySQLError

from django_snapshots.blame import speaks_against
from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotBusyError,
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotConnectorError,
    SnapshotDrillError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
    SnapshotStorageError,
)


def caused(error, *causes):
    """*error*, made of the first of *causes*, which was made of the next."""
    for outer, inner in zip((error, *causes), causes, strict=False):
        outer.__cause__ = inner
    return error


def sqlite(code):
    error = sqlite3.OperationalError("said")
    error.sqlite_errorcode = code
    return error


def connector(text="It failed"):
    return SnapshotConnectorError(text)


AGAINST = [
    SnapshotIntegrityError("a byte"),
    SnapshotDrillError("rows"),
    SnapshotNotFoundError("a file is gone"),
    connector("pg_restore exited with status 1: could not execute query: ERROR:  syntax error at or near FROM"),
    connector('psql exited with status 3: ERROR:  invalid input syntax for type integer: "x"'),
    connector("mariadb exited with status 1: ERROR 1064 (42000) at line 7: You have an error in your SQL syntax"),
    connector(
        'pg_restore exited with status 1: ERROR:  could not create unique index "x" DETAIL: Key (id)=(1) is duplicated'
    ),
    connector('pg_restore exited with status 1: ERROR:  could not create exclusion constraint "x"'),
    connector("pg_restore was killed by SIGSEGV and said nothing"),
    connector("mariadb was killed by SIGABRT and said nothing"),
    connector(
        'psql exited with status 3: ERROR:  bad input CONTEXT: COPY log, line 3, column msg: "connection to server at"'
    ),
    connector("psql exited with status 3: ERROR:  bad row DETAIL: Key (msg)=(No space left on device) is duplicated"),
    caused(connector(), OperationalError("x"), psycopg.errors.InFailedSqlTransaction("x")),
    connector("The restore of 'default' failed"),
    SnapshotArtifactError("its own kind says no"),
    caused(connector(), ProgrammingError("x"), psycopg.errors.UndefinedTable("x")),
    caused(connector(), ProgrammingError("x"), MySQLError(1064, "syntax")),
    caused(connector(), sqlite(sqlite3.SQLITE_CORRUPT)),
    caused(OperationalError("no such table"), sqlite(sqlite3.SQLITE_ERROR)),
    caused(connector(), SnapshotNotFoundError("a file is gone")),
]
OF_THE_MACHINE = [
    caused(connector(), OperationalError("x"), psycopg.OperationalError("connection refused")),
    caused(connector(), OperationalError("x"), psycopg.errors.DiskFull("x")),
    caused(connector(), OperationalError("x"), psycopg.errors.AdminShutdown("x")),
    caused(connector(), ProgrammingError("x"), psycopg.errors.InsufficientPrivilege("x")),
    caused(connector(), OperationalError("x"), psycopg.errors.LockNotAvailable("x")),
    caused(connector(), InterfaceError("x"), psycopg.InterfaceError("closed")),
    caused(connector(), OperationalError("x"), MySQLError(2002, "Can't connect")),
    caused(connector(), OperationalError("x"), MySQLError(1044, "Access denied")),
    caused(connector(), sqlite(sqlite3.SQLITE_FULL)),
    caused(connector(), sqlite(sqlite3.SQLITE_IOERR | (3 << 8))),
    caused(connector(), OSError(28, "No space left on device")),
    caused(connector("outer"), connector("inner"), FileNotFoundError("no pg_restore")),
    caused(OperationalError("x"), psycopg.OperationalError("the connection is lost")),
    connector("pg_restore exited with status 1: error: could not execute query: ERROR:  could not extend file"),
    connector('psql exited with status 3: ERROR:  could not write to file "base/1": No space left on device'),
    connector("pg_restore exited with status 1: ERROR:  permission denied for schema shop"),
    connector('pg_restore exited with status 1: ERROR:  role "olga" does not exist'),
    connector("psql exited with status 2: server closed the connection unexpectedly"),
    connector('psql exited with status 2: connection to server at "db" failed'),
    connector("pg_restore was killed by SIGKILL and said nothing"),
    connector("pg_restore was killed by SIGTERM and said nothing"),
    connector('psql exited with status 3: ERROR:  could not create file "base/1": Too many open files'),
    connector("psql exited with status 3: ERROR:  permission denied for table log CONTEXT: SQL function"),
    caused(connector(), OperationalError("x"), psycopg.errors.ReadOnlySqlTransaction("x")),
    connector("mariadb exited with status 1: ERROR 2013 (HY000) at line 7: Lost connection to server"),
    connector("mariadb exited with status 1: ERROR 1114 (HY000) at line 7: The table is full"),
    connector("mariadb exited with status 1: ERROR 1227 (42000) at line 7: Access denied; you need SUPER"),
    SnapshotPreflightError("a right"),
    SnapshotConfigurationError("an alias"),
    SnapshotStorageError("the storage is away"),
    SnapshotBusyError("another"),
    SnapshotCancelled("the run"),
    OSError(28, "No space left on device"),
    MemoryError(),
    ValueError("of the code"),
]


@pytest.mark.parametrize("error", AGAINST, ids=str)
def test_what_is_held_against_a_snapshot(error):
    assert speaks_against(error)


@pytest.mark.parametrize("error", OF_THE_MACHINE, ids=str)
def test_what_says_nothing_of_it(error):
    assert not speaks_against(error)
