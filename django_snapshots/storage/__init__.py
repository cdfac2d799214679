"""Where snapshots live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_snapshots.storage.django_storage import DjangoStorageBackend
from django_snapshots.storage.local import LocalFileSystemBackend
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage, requires_advanced_storage

if TYPE_CHECKING:
    from django_snapshots.storage.rclone import RcloneBackend

__all__ = [
    "AdvancedSnapshotStorage",
    "DjangoStorageBackend",
    "LocalFileSystemBackend",
    "RcloneBackend",
    "SnapshotStorage",
    "requires_advanced_storage",
]


def __getattr__(name: str) -> Any:
    """Look rclone's backend up when somebody asks for it; most projects don't."""
    if name == "RcloneBackend":
        from django_snapshots.storage.rclone import RcloneBackend

        return RcloneBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
