"""Views that can't be read: the dump tool fails on some of them half way, and carries the others without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql.server import names, quote, rows
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.redaction import redact


def view_names(connection: BaseDatabaseWrapper) -> list[str]:
    """The views of the database."""
    return names(
        connection, "SELECT table_name FROM information_schema.views WHERE table_schema = DATABASE() ORDER BY 1"
    )


def require_whole(connection: BaseDatabaseWrapper, alias: str, views: Sequence[str]) -> None:
    """Raise ``SnapshotConnectorError`` that names every view whose columns the server can't tell."""
    if found := broken(connection, views):
        raise SnapshotConnectorError(
            f"{alias!r} can't be dumped: what these views stand on is gone, or the account may not read it: "
            f"{'; '.join(f'{name} ({said})' for name, said in found)}. Make them anew or drop them."
        )


def broken(connection: BaseDatabaseWrapper, views: Sequence[str]) -> list[tuple[str, str]]:
    """The views whose columns the server can't tell, each with what it says: no such view can be created."""
    return [(name, said) for name in views if (said := _error(connection, f"SHOW FIELDS FROM {quote(name)}"))]


def warnings(connection: BaseDatabaseWrapper, views: Sequence[str]) -> Iterator[str]:
    """What is said of views that are dumped, and that nobody can read."""
    for name in views:
        if said := _error(connection, f"SELECT 1 FROM {quote(name)} LIMIT 0"):  # noqa: S608 - quoted
            yield (
                f"The view {name} can't be read ({said}). It is dumped as it is, and can't be read after a restore "
                "either."
            )


def _error(connection: BaseDatabaseWrapper, statement: str) -> str:
    """What the server says against *statement*; empty if it says nothing."""
    try:
        rows(connection, statement)
    except DatabaseError as error:
        return redact(" ".join(str(item) for item in error.args))
    return ""
