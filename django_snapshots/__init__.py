"""Snapshots of a Django project, taken and restored by Celery tasks.

The public names are resolved when they are first used, so that ``settings.py`` may import from here before Django's
apps are ready.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_snapshots.execution import (
        create_snapshot,
        drill_snapshot,
        list_snapshots,
        pin_snapshot,
        restore_snapshot,
        undo_restore,
        unpin_snapshot,
        verify_snapshot,
    )
    from django_snapshots.storage.django_storage import DjangoStorageBackend
    from django_snapshots.storage.local import LocalFileSystemBackend
    from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage
    from django_snapshots.tasks import request_restore
    from django_snapshots.working import cancel_run

__all__ = [
    "AdvancedSnapshotStorage",
    "DjangoStorageBackend",
    "LocalFileSystemBackend",
    "SnapshotStorage",
    "cancel_run",
    "create_snapshot",
    "drill_snapshot",
    "list_snapshots",
    "pin_snapshot",
    "request_restore",
    "restore_snapshot",
    "undo_restore",
    "unpin_snapshot",
    "verify_snapshot",
]

__version__ = "0.1.0"

_HOMES = (
    ("AdvancedSnapshotStorage", "storage.protocols"),
    ("DjangoStorageBackend", "storage.django_storage"),
    ("LocalFileSystemBackend", "storage.local"),
    ("SnapshotStorage", "storage.protocols"),
    ("cancel_run", "working"),
    ("create_snapshot", "execution"),
    ("drill_snapshot", "execution"),
    ("list_snapshots", "execution"),
    ("pin_snapshot", "execution"),
    ("request_restore", "tasks"),
    ("restore_snapshot", "execution"),
    ("undo_restore", "execution"),
    ("unpin_snapshot", "execution"),
    ("verify_snapshot", "execution"),
)


def __getattr__(name: str) -> Any:
    for public, home in _HOMES:
        if public == name:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
