"""Where the storage is, and what it is believed to hold."""

from __future__ import annotations

from django_snapshots import runs
from django_snapshots.catalog import Catalog, Entry
from django_snapshots.conf import Settings


def place_of(settings: Settings) -> str:
    """Where the storage is, if it can tell; only then can it be missed when it is somewhere else."""
    return str(getattr(settings.storage, "label", ""))


def list_entries(settings: Settings) -> list[Entry]:
    """Everything in the storage that has a manifest, the newest first.

    That there is nothing is believed only of the storage that the journal knows: a disk that isn't mounted looks like
    an empty one. Raises ``SnapshotStorageError``.
    """
    catalog = Catalog(settings.storage)
    entries, place = catalog.entries(), place_of(settings)
    if not entries and place and runs.available():
        catalog.storage_id(expected=runs.known_storage_id(place), create=False)
    return entries
