"""Looks into a stored archive without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.archive import read_contents
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.transfer import RestoreRequest, Source

_DATA = "TABLE DATA "
_SHOWN = 5


def examine(
    subject: str, source: Source, request: RestoreRequest, client_directory: str | None = None
) -> Mapping[str, Any]:
    """Have ``pg_restore`` read the archive's own list of contents.

    Raises ``SnapshotIntegrityError`` if a table that had rows is not in it, ``SnapshotConnectorError`` if there is no
    ``pg_restore`` that can read it.
    """
    entries = read_contents(subject, source, request.processes, client_directory).entries
    data = [entry for entry in entries if entry.rest.startswith(_DATA)]
    listed = {part for entry in data for part in _beginnings(entry.rest.removeprefix(_DATA))}
    counted = source.metadata.get("row_counts")
    with_rows = [name for name, number in counted.items() if number] if isinstance(counted, Mapping) else []
    # An archive of a database that isn't UTF-8 may have names that can't be read: they may be any that aren't plain.
    unread = any("\ufffd" in entry.rest for entry in data)
    missing = sorted(name for name in with_rows if _shown(name) not in listed and (name.isascii() or not unread))
    if missing:
        raise SnapshotIntegrityError(
            f"{source.filename} lacks the rows of {len(missing)} tables that the manifest has: "
            f"{', '.join(missing[:_SHOWN])}."
        )
    return {"entries": len(entries), "tables": len(data)}


def _beginnings(text: str) -> list[str]:
    """What "schema table owner" may begin with: any of the three may have spaces in it."""
    words = text.split(" ")
    return [" ".join(words[:number]) for number in range(2, len(words) + 1)]


def _shown(name: str) -> str:
    """A quoted name as the list shows it: plain, on one line."""
    return " ".join(catalog.split_name(name)).replace("\r", " ").replace("\n", " ")
