"""The two tiers of connectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from django_snapshots.transfer import Transferable


@runtime_checkable
class DatabaseConnector(Protocol):
    """Tier one: dumps one alias to a file and restores it from one. No base class is needed.

    A tier-one dump goes through a private temporary directory that is always removed, and its restore is not atomic.
    """

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        """Dump the database to *dest*; return extra metadata for the manifest, such as ``{"format": "dmp"}``."""

    def restore(self, db_alias: str, src: Path) -> None:
        """Restore the database from *src*."""


@runtime_checkable
class StreamingConnector(Transferable, Protocol):
    """Tier two: dumps as a stream, without a temporary copy, and restores in four moves.

    The ``metadata`` of its :class:`~django_snapshots.transfer.Dump` holds at least ``engine``, ``server_version``,
    ``client_version`` (``None`` where no outside program is used), ``row_counts`` (table name to number),
    ``row_counts_exact`` (whether they were taken in the dump's own moment) and ``migrations`` (``["app.name", ...]``).
    """
