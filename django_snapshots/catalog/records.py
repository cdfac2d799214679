"""What the catalog takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from django_snapshots.exceptions import SnapshotError, SnapshotIntegrityError
from django_snapshots.manifest import ArtifactRecord, Snapshot, check_name, is_safe_filename, to_iso


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What lies in a storage under a snapshot's name."""

    name: str
    snapshot: Snapshot | None = None
    error: SnapshotError | None = None
    """Why the manifest can't be read; such an entry is shown and never touched."""


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """An artifact that an attempt has stored, on its way into a manifest."""

    record: ArtifactRecord
    """Under the attempt's file name."""
    plain_filename: str
    """The name that it should have once it is published."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """An object that an attempt has stored and no manifest names."""

    name: str
    """The snapshot that it was to be part of."""
    filename: str
    run: str
    """32 hex digits."""


class Reader(Protocol):
    """The stored artifacts of one snapshot, open for a pass over them.

    Ask in the manifest's order, each for its size and then for its bytes, and for the end last: then no storage has to
    read anything twice, also one whose files can't be sought in.
    """

    def size_of(self, record: ArtifactRecord) -> int:
        """Bytes that are stored of it; raises ``SnapshotNotFoundError`` or ``SnapshotIntegrityError``."""

    def open(self, record: ArtifactRecord) -> Iterator[bytes]:
        """Its stored bytes in chunks, of which only the manifest's digest can say whether they are right."""

    def check_end(self) -> None:
        """Raise ``SnapshotIntegrityError`` if the last artifact isn't the last thing."""


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """A finished snapshot as a task's result: plain JSON."""
    return {
        "name": snapshot.name,
        "run": snapshot.run,
        "created_at": to_iso(snapshot.created_at),
        "size": snapshot.size,
        "artifacts": [artifact.to_json() for artifact in snapshot.artifacts],
        **({"safety": snapshot.safety.to_json()} if snapshot.safety else {}),
    }


def path_of(name: str, filename: str) -> str:
    """Where the file of an artifact lies in the format "directory", and that of an attempt in both."""
    if not is_safe_filename(filename):
        raise SnapshotIntegrityError(f"{filename!r} can't be the name of an artifact's file.")
    return f"{check_name(name)}/{filename}"


def may_be_name(name: str) -> bool:
    """Whether a snapshot may be called so."""
    try:
        check_name(name)
    except SnapshotError:
        return False
    return True


def newest_first(entry: Entry) -> tuple[bool, datetime, str]:
    """The key that sorts entries, reversed: unreadable ones, then by their moment."""
    if entry.snapshot is None:
        return (True, datetime.max.replace(tzinfo=UTC), entry.name)
    return (False, entry.snapshot.created_at, entry.name)
