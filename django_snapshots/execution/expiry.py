"""When what restores have replaced goes: after its time, and when two newer states of its target are kept.

So the last restore can be undone, and that undo, too. Whoever collects garbage does it, and whoever has ended a
restore. Nothing is removed while a run works with the target.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial

from django_snapshots import runs
from django_snapshots import undo as undoing
from django_snapshots.artifacts.capabilities import identity_of, remove_of
from django_snapshots.backup import utc_now
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotBusyError
from django_snapshots.redaction import redact
from django_snapshots.undo import Kept

logger = logging.getLogger("django_snapshots")

GENERATIONS = 2
"""So many kept states of one target stay, whatever their time."""


def expire(settings: Settings, run: uuid.UUID | None = None) -> list[str]:
    """Remove what is too old; return it in words. What can't be removed is logged and left for the next time.

    *run* is the caller's own, which may hold locks.
    """
    return [item.place for item in _superfluous(settings, utc_now()) if _removed(settings, item, run)]


def _superfluous(settings: Settings, now: datetime) -> Iterator[Kept]:
    seen: dict[tuple[str, str, bool], int] = {}
    for item in undoing.kept_states(settings):
        # What single tables were replaced by is not what brings a whole database back.
        target = (item.type, item.subject, bool(item.tables))
        seen[target] = seen.get(target, 0) + 1
        if seen[target] > GENERATIONS or (item.expires_at is not None and item.expires_at < now):
            yield item


def _removed(settings: Settings, item: Kept, run: uuid.UUID | None) -> bool:
    kind = settings.kind(item.type)
    try:
        if runs.available():
            what = f"{item.type} {item.subject}"
            runs.require_free(runs.Wanted(key=identity_of(kind, item.subject), what=what), besides=run)
            if item.snapshot:
                runs.require_free(runs.snapshot_lock(item.snapshot, exclusive=True), besides=run)
        remove: Callable[[], None] = partial(remove_of, kind, item.subject, item.mark)
        if item.snapshot:
            remove = partial(Catalog(settings.storage).delete, item.snapshot, run=item.run)
        remove()
    except SnapshotBusyError:
        return False
    except Exception as error:  # noqa: BLE001 - a storage or a connector raises what it likes
        logger.warning("%s could not be removed: %s", item.place, redact(str(error)))
        return False
    return True
