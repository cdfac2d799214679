"""Where the storage is, and what it is believed to hold; and whether there is a journal."""

from __future__ import annotations

from django.db import Error as DatabaseError

from django_snapshots import runs
from django_snapshots.catalog import Catalog, Entry
from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotError
from django_snapshots.redaction import redact


def has_journal(settings: Settings) -> bool:
    """Whether there is a journal. Raises ``SnapshotError`` where nobody knows that, because its database is there and
    can't be read now, or its server doesn't answer."""
    try:
        return runs.is_there()
    except DatabaseError as error:
        if _is_missing(settings):
            return False
        raise SnapshotError(
            f"The server of the journal's database {runs.alias()!r} does not answer: {redact(str(error)).strip()}."
        ) from error


def _is_missing(settings: Settings) -> bool:
    """Whether the database is known not to be there, or to hold nothing."""
    try:
        return settings.kind("database").target(runs.alias()).empty
    except Exception:  # noqa: BLE001 - a connector raises what it likes
        return False


def told_without_locks(settings: Settings) -> list[str]:
    """What to tell whoever asks for a restore now that takes no lock, though there may be a journal."""
    try:
        has_journal(settings)
    except SnapshotError as error:
        return [
            f"{error} Without the journal nothing is locked, and no run is recorded: see to it that no worker and no "
            "other command works with the same targets."
        ]
    return []


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
