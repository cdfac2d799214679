"""What a manifest records of a dump, read as if a stranger had written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from django_snapshots.exceptions import SnapshotIntegrityError

T = TypeVar("T")


def by_name(metadata: Mapping[str, Any], key: str, kind: type[T]) -> dict[str, T]:
    """What *key* says, a *kind* for each name; nothing if it isn't there. Raises ``SnapshotIntegrityError``."""
    found = metadata.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(value, kind) for value in found.values()):
        raise SnapshotIntegrityError(
            f"The manifest is not as it was written: its {key!r} of a database can't be understood. Nothing was "
            "changed. Restore another snapshot, or by hand."
        )
    return dict(found)


def row_counts(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The rows of each table, as far as they were counted. Raises ``SnapshotIntegrityError``."""
    return by_name(metadata, "row_counts", int)


def exact_row_counts(metadata: Mapping[str, Any]) -> dict[str, int] | None:
    """The rows of each table, if they can decide anything. Raises ``SnapshotIntegrityError``."""
    exact = metadata.get("row_counts_exact") and metadata.get("row_counts") is not None
    return row_counts(metadata) if exact else None


def texts(found: Any) -> set[str]:
    """The texts in a list; what is anything else says nothing."""
    return {item for item in found if isinstance(item, str)} if isinstance(found, list | tuple) else set()
