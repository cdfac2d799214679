"""Whether the rows of single tables of a SQLite database can be replaced, before anything is begun."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from django_snapshots.connectors import sqlite_tables as tables_of
from django_snapshots.connectors.sqlite_files import Patience, Place
from django_snapshots.connectors.sqlite_rows import opened
from django_snapshots.exceptions import SnapshotPreflightError
from django_snapshots.transfer import RestoreRequest


def require_present(place: Place) -> None:
    """Raise ``SnapshotPreflightError`` if there is no file that the rows could go into."""
    if place.path is not None and not place.real.is_file():
        raise SnapshotPreflightError(nowhere(place))


def nowhere(place: Place) -> str:
    """Said of a file that is missing."""
    return (
        f"{place.title} does not exist, so there is nothing that the rows of single tables could go into; restore the "
        "whole snapshot. Nothing was touched."
    )


def require_fit(place: Place, staged: Path, request: RestoreRequest, seconds: float) -> None:
    """Raise ``SnapshotPreflightError`` unless *staged* has rows for every table that is asked for.

    Waits at most *seconds* for other connections' locks.
    """
    patience = Patience(place, seconds, request.processes)
    with opened(place, staged, patience) as live, _read(live, patience):
        tables_of.require(place, live, request.tables, request.preserve_tables)


@contextlib.contextmanager
def _read(live: sqlite3.Connection, patience: Patience) -> Iterator[None]:
    """One transaction: with its first look the live database can be read until the end. In memory it always can."""
    if live.in_transaction:
        yield
        return
    live.execute("BEGIN")
    try:
        patience.execute(live, "SELECT count(*) FROM main.sqlite_master")
        yield
    finally:
        live.execute("ROLLBACK")


def silent_triggers(live: sqlite3.Connection, tables: Iterable[str]) -> Iterator[str]:
    """One sentence for each of *tables* that has triggers."""
    for table in sorted(tables):
        if names := ", ".join(name for name, _ in tables_of.triggers(live, table)):
            yield (
                f"The triggers of {table} ({names}) don't run while its rows are replaced; what they keep in other "
                "tables, such as a search index, stays as it is: make it anew."
            )
