"""What nobody will ever need: objects of runs that have ended, deletes that were interrupted, temporary directories.

The rule is narrow, because a storage may be shared with others, whose journals this one doesn't know: only objects
that carry this storage's id and a run that this journal has had in a final state for the grace period, unless this run
has published them, and tombstoned deletes of this project. Never anything beside a manifest that can't be read, never
what this package did not name.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from functools import partial

from django_snapshots import runs
from django_snapshots.catalog import Catalog, Leftover
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import SnapshotBusyError
from django_snapshots.execution.expiry import expire
from django_snapshots.redaction import redact
from django_snapshots.temporary import remove_abandoned

logger = logging.getLogger("django_snapshots")


def collect() -> list[str]:
    """Remove it; return what was removed, in words. What can't be removed is logged and left for the next time."""
    settings = get_settings()
    catalog = Catalog(settings.storage)
    storage_id = catalog.storage_id(create=False)
    removed = [f"{item.name}/{item.filename}" for item in _leftovers(catalog, storage_id, settings.limits.grace)]
    removed += [f"the rest of {name}" for name in _half_deleted(catalog, storage_id, settings)]
    removed += expire(settings)
    return [*removed, *(str(path) for path in remove_abandoned(settings.temporary_directory))]


def _leftovers(catalog: Catalog, storage_id: str, grace: float) -> Iterator[Leftover]:
    if not storage_id:
        return
    found = list(catalog.leftovers())
    ended = runs.ended_before(storage_id, {uuid.UUID(item.run) for item in found}, grace)
    published = runs.published(ended)
    for item in found:
        run = uuid.UUID(item.run)
        # A snapshot that has lost its manifest, or gets it last while it is copied back, can be put right by hand.
        if run not in ended or (run, item.filename) in published:
            continue
        if _done(partial(catalog.remove_leftover, item), item.filename):
            yield item


def _half_deleted(catalog: Catalog, storage_id: str, settings: Settings) -> Iterator[str]:
    for snapshot in list(catalog.half_deleted()):
        ours = (snapshot.storage, snapshot.project, snapshot.environment)
        if ours != (storage_id, settings.project, settings.environment):
            continue
        try:
            runs.require_free(runs.snapshot_lock(snapshot.name, exclusive=True))
        except SnapshotBusyError:
            continue  # its delete goes on
        # By its run: somebody may have ended the delete since, and another snapshot have got the name.
        if _done(partial(catalog.delete, snapshot.name, run=snapshot.run), snapshot.name):
            yield snapshot.name


def _done(remove: Callable[[], None], what: str) -> bool:
    try:
        remove()
    except Exception as error:  # noqa: BLE001 - a storage raises what it likes, and the others are still to come
        logger.warning("%s could not be removed: %s", what, redact(str(error)))
        return False
    return True
