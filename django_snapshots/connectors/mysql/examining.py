"""Looks into a stored dump without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django_snapshots.connectors.mysql.scan import scan
from django_snapshots.exceptions import SnapshotCancelled, SnapshotIntegrityError
from django_snapshots.transfer import RestoreRequest, Source

_SHOWN = 5


def examine(source: Source, request: RestoreRequest) -> Mapping[str, Any]:
    """Read the script of *source* to its end. Raises ``SnapshotIntegrityError`` if it has no end mark, or if a table
    that the manifest has counted is not in it."""
    findings = scan(_watched(source, request))
    if not findings.complete:
        raise SnapshotIntegrityError(f"{source.filename} is not a whole dump: its end mark is missing.")
    counted = source.metadata.get("row_counts")
    missing = sorted(set(counted) - findings.tables) if isinstance(counted, Mapping) else []
    if missing:
        raise SnapshotIntegrityError(
            f"{source.filename} lacks {len(missing)} tables that the manifest has: {', '.join(missing[:_SHOWN])}."
        )
    return {"tables": len(findings.tables)}


def _watched(source: Source, request: RestoreRequest) -> Iterator[bytes]:
    for chunk in source.open():
        if request.processes.ended:
            raise SnapshotCancelled(f"The run was cancelled while {source.filename} was read.")
        yield chunk
