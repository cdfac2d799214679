"""Whether the rows of single tables of a SQLite database can be replaced, before anything is begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from django_snapshots.connectors import sqlite_tables as tables_of
from django_snapshots.connectors.sqlite_files import Place
from django_snapshots.connectors.sqlite_rows import opened
from django_snapshots.exceptions import SnapshotPreflightError
from django_snapshots.transfer import RestoreRequest, Source


def require_present(place: Place) -> None:
    """Raise ``SnapshotPreflightError`` if there is no file that the rows could go into."""
    if place.path is not None and not place.real.is_file():
        raise SnapshotPreflightError(
            f"{place.title} does not exist, so there is nothing that the rows of single tables could go into; restore "
            "the whole snapshot. Nothing was touched."
        )


def require_fit(place: Place, source: Source, staged: Path, request: RestoreRequest) -> None:
    """Raise ``SnapshotPreflightError`` unless *staged* has rows for every table that is asked for."""
    if empty := sorted(request.tables & set(source.metadata.get("data_excluded") or ())):
        raise SnapshotPreflightError(
            f"The rows of {', '.join(empty)} were left out of the snapshot, so there is nothing to put in their place. "
            f"{place.title} was not touched."
        )
    with opened(place, staged) as live:
        tables_of.require(place, live, request.tables, request.preserve_tables)
        for table in sorted(request.tables):
            for sentence in _told(tables_of.triggers(live, table), table):
                request.report(sentence)


def _told(fire: list[tuple[str, str]], table: str) -> Iterator[str]:
    if fire:
        names = ", ".join(name for name, _ in fire)
        yield (
            f"The triggers of {table} ({names}) don't run while its rows are replaced; what they keep in other tables, "
            "such as a search index, stays as it is: make it anew."
        )
