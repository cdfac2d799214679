"""Whose storage it is: an id that was made once and lies in it."""

from __future__ import annotations

import contextlib
import json
import uuid
from datetime import UTC, datetime

from django_snapshots.catalog.objects import create, label, patiently, small
from django_snapshots.exceptions import (
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotStorageError,
)
from django_snapshots.manifest import to_iso
from django_snapshots.storage.protocols import SnapshotStorage

MARKER = ".django-snapshots.json"
_MAX_MARKER_SIZE = 64 * 1024


def storage_id(storage: SnapshotStorage, *, expected: str | None, make: bool) -> str:
    """The id of *storage*; see ``Catalog.storage_id``."""
    found = _read(storage)
    if expected and found != expected:
        raise SnapshotStorageError(
            f"{label(storage)} is not the storage that it was: its {MARKER} "
            f"{'is missing' if found is None else 'has another id'}. Is a disk not mounted, a bucket changed? "
            "If the storage was replaced on purpose, give it another location or put the old file back."
        )
    if found is None and make:
        found = _write(storage)
    return found or ""


def _read(storage: SnapshotStorage) -> str | None:
    try:
        return patiently(storage, lambda: _marker_id(small(storage, MARKER, _MAX_MARKER_SIZE)))
    except SnapshotNotFoundError:
        return None
    except SnapshotIntegrityError as error:
        raise SnapshotStorageError(
            f"{MARKER} in {label(storage)} can't be read; it says whose storage this is. "
            "Put its original back, or choose another location."
        ) from error


def _write(storage: SnapshotStorage) -> str:
    made = {"id": str(uuid.uuid4()), "created_at": to_iso(datetime.now(UTC))}
    # Another process may have made one at this moment; whichever is there then is the storage's.
    with contextlib.suppress(SnapshotExistsError):
        create(storage, MARKER, json.dumps(made, indent=2).encode() + b"\n", unique=made["id"])
    found = _read(storage)
    if found is None:
        raise SnapshotStorageError(f"{label(storage)} does not give back what was just written to {MARKER}.")
    return found


def _marker_id(content: bytes) -> str:
    try:
        return str(uuid.UUID(json.loads(content)["id"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotIntegrityError(f"{MARKER} is damaged.") from error
