"""Views and triggers that can't be made again: the dump tool fails on some half way, and carries the others without a
word, into a dump that can't be loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.record import text
from django_snapshots.connectors.mysql.server import execute, names, quote, rows
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.redaction import redact

_NO_SUCH_COLUMN = 1054
_NO_SUCH_DEFINER = 1449
_WORDS = re.compile(
    r"""(?P<row>`(?:NEW|OLD)`|(?<![.`"\w$])(?:NEW|OLD))\s*\.\s*(?P<column>`(?:[^`]|``)+`|"(?:[^"]|"")+"|[\w$]+)"""
    r"""|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`]|``)*`|/\*(?!M?!).*?\*/|\#[^\n]*|--(?=\s)[^\n]*""",
    re.IGNORECASE | re.DOTALL,
)
"""A column of the row that a trigger is about; or what may hold such words and is none: a string, a name, a comment."""


def view_names(connection: BaseDatabaseWrapper) -> list[str]:
    """The views of the database."""
    return names(
        connection, "SELECT table_name FROM information_schema.views WHERE table_schema = DATABASE() ORDER BY 1"
    )


def require_whole(
    connection: BaseDatabaseWrapper, alias: str, views: Sequence[str], excluded: Collection[str] = ()
) -> None:
    """Raise ``SnapshotConnectorError`` that names every view and trigger, but for those of *excluded* tables, that
    could not be made again."""
    found = [*broken(connection, views), *broken_triggers(connection, excluded)]
    if found:
        raise SnapshotConnectorError(
            f"{alias!r} can't be dumped: what these views and triggers stand on is gone, or the account may not read "
            f"it: {'; '.join(f'{name} ({said})' for name, said in found)}. Make them anew or drop them."
        )


def broken(connection: BaseDatabaseWrapper, views: Sequence[str]) -> list[tuple[str, str]]:
    """The views that could not be created as they are, each with what the server says."""
    return [
        (name, said)
        for name in views
        if (said := _error(connection, f"SHOW FIELDS FROM {quote(name)}") or _nobody(connection, name))
    ]


def broken_triggers(connection: BaseDatabaseWrapper, excluded: Collection[str] = ()) -> list[tuple[str, str]]:
    """The triggers that could not be created as they are, because their table has lost a column, each with what the
    server says. It drops such a column without a word."""
    found = rows(
        connection,
        "SELECT trigger_name, event_object_table, action_statement FROM information_schema.triggers "
        "WHERE trigger_schema = DATABASE() ORDER BY 1",
    )
    return [
        (str(name), said)
        for name, table, statement in found
        if table not in excluded and (said := _missing_column(connection, str(table), str(statement)))
    ]


def warnings(connection: BaseDatabaseWrapper, views: Sequence[str]) -> Iterator[str]:
    """What is said of views that are dumped, and that nobody can read."""
    for name in views:
        if said := _error(connection, f"SELECT 1 FROM {quote(name)} LIMIT 0"):  # noqa: S608 - quoted
            yield (
                f"The view {name} can't be read ({said}). It is dumped as it is, and can't be read after a restore "
                "either."
            )


def _nobody(connection: BaseDatabaseWrapper, view: str) -> str:
    """What the server says where *view* stands on one that runs as an account which is gone. Its own may be gone."""
    definition = names(
        connection,
        "SELECT view_definition FROM information_schema.views "  # noqa: S608 - hex
        f"WHERE table_schema = DATABASE() AND table_name = {text(view)}",
    )
    execute(connection, f"SET @django_snapshots = {text(''.join(definition))}")
    return _error(connection, "PREPARE django_snapshots FROM @django_snapshots", _NO_SUCH_DEFINER)


def _missing_column(connection: BaseDatabaseWrapper, table: str, statement: str) -> str:
    columns = dict.fromkeys(match["column"] for match in _WORDS.finditer(statement) if match["column"])
    for column in columns:
        name = column[1:-1].replace(column[0] * 2, column[0]) if column[0] in '`"' else column
        # The server itself knows best which names are columns.
        if said := _error(connection, f"SELECT {quote(name)} FROM {quote(table)} LIMIT 0", _NO_SUCH_COLUMN):  # noqa: S608
            return said
    return ""


def _error(connection: BaseDatabaseWrapper, statement: str, number: int = 0) -> str:
    """What the server says against *statement*, or only the error *number* of it; empty if it says nothing."""
    try:
        rows(connection, statement)
    except DatabaseError as error:
        if number in (0, error.args[0]):
            return redact(" ".join(str(item) for item in error.args))
    return ""
