"""Pins snapshots, and takes pins away.

A delete takes its lock and then looks for a pin; whoever pins writes the pin and then looks for that lock. So one of
the two sees the other, whatever the order: a pin that is reported as done holds.

A storage of the basic tier replaces nothing: there the old pin would have to go before the new one comes, and a prune
that looks in between would delete the snapshot. So there a pin that is there stays.
"""

from __future__ import annotations

from typing import Any

from django_snapshots import runs
from django_snapshots.catalog import Catalog
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import SnapshotBusyError, SnapshotPinnedError
from django_snapshots.storage.protocols import AdvancedSnapshotStorage


def pin_snapshot(name: str, *, reason: str = "", by: str = "") -> dict[str, Any]:
    """Pin the snapshot called *name*: no prune and no delete removes it until it is unpinned.

    *reason* and *by*, who asks, are shown with it. Pinned again, it has the new reason. Returns the pin as plain JSON.
    Raises ``SnapshotNotFoundError``, ``SnapshotBusyError`` while the snapshot is being deleted, ``SnapshotPinnedError``
    for one that is pinned in a storage of the basic tier, and refuses one whose manifest can't be read.
    """
    catalog = Catalog(get_settings().storage)
    snapshot = catalog.get(name)
    before = catalog.pin(snapshot)
    if before is not None and not isinstance(catalog.storage, AdvancedSnapshotStorage):
        raise SnapshotPinnedError(
            f"{name!r} is pinned already, and stays so: its storage is of the basic tier, which can't replace a pin. "
            f"To give it another reason, unpin it first (`manage.py snapshots unpin {name}`); until it is pinned "
            "again, a prune may delete it."
        )
    pin = catalog.write_pin(snapshot, reason=reason, by=by)
    try:
        if runs.available():
            runs.require_free(runs.snapshot_lock(name, exclusive=False))
    except SnapshotBusyError:
        # Somebody else may have pinned it meanwhile, after the delete has given up: that pin stays.
        if before is None and catalog.pin(snapshot) == pin:
            catalog.delete_pin(snapshot)
        raise
    return {"name": name, "pinned": pin.to_json()}


def unpin_snapshot(name: str) -> dict[str, Any]:
    """Take the pin of the snapshot called *name* away, also one that can't be read; nothing if there is none.

    Returns what was taken away as plain JSON. Raises ``SnapshotNotFoundError``, and refuses a snapshot whose manifest
    can't be read.
    """
    catalog = Catalog(get_settings().storage)
    snapshot = catalog.get(name)
    pin = catalog.pin(snapshot)
    if pin is not None:
        catalog.delete_pin(snapshot)
    return {"name": name, "was_pinned": None if pin is None else pin.to_json()}
