"""What nobody will ever need: objects of runs that have ended, deletes that were interrupted, temporary directories.

The rule is narrow, because a storage may be shared with others, whose journals this one doesn't know: only objects
that carry this storage's id and a run that this journal has had in a final state for the grace period, unless this run
has published them, and tombstoned deletes of this project. Never anything beside a manifest that can't be read, never
what this package did not name. Of what lies beside databases only what a drill of this journal was building, whose run
has ended or has another attempt at work.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from functools import partial

from django_snapshots import runs
from django_snapshots.artifacts.capabilities import beside_of, settle_of
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.catalog import Catalog, Leftover
from django_snapshots.conf import Settings, get_settings
from django_snapshots.drill import Mark
from django_snapshots.exceptions import SnapshotBusyError, SnapshotError
from django_snapshots.execution.expiry import superfluous
from django_snapshots.execution.inline import run_inline
from django_snapshots.execution.leftovers import settle_leftovers
from django_snapshots.execution.restoring import meet_derived_aliases
from django_snapshots.models import Kind
from django_snapshots.plan import Request
from django_snapshots.redaction import redact
from django_snapshots.replaced import Beside
from django_snapshots.temporary import remove_abandoned

logger = logging.getLogger("django_snapshots")


def collect() -> list[str]:
    """Remove it; return what was removed, in words. What can't be removed is logged and left for the next time."""
    settings = get_settings()
    catalog = Catalog(settings.storage)
    storage_id = catalog.storage_id(create=False)
    removed = [f"{item.name}/{item.filename}" for item in _leftovers(catalog, storage_id, settings.limits.grace)]
    removed += [f"the rest of {name}" for name in _half_deleted(catalog, storage_id, settings)]
    removed += [f"the scratch database of drill {mark.run} at {alias}" for alias, mark in _scratch(settings)]
    meet_derived_aliases()
    removed += [*settle_leftovers(settings), *_expired(settings)]
    return [*removed, *(str(path) for path in remove_abandoned(settings.temporary_directory))]


def _expired(settings: Settings) -> list[str]:
    """What restores have kept, and that is too old, removed by a run of its own, which has the targets' locks."""
    if not superfluous(settings):
        return []
    try:
        removed = run_inline(Kind.PRUNE, Request(kept=True), requester=runs.Requester(source="sweep"))["removed"]
    except SnapshotError as error:
        logger.warning("What restores have kept could not be removed: %s", redact(str(error)))
        return []
    return list(removed)


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


def _scratch(settings: Settings) -> Iterator[tuple[str, Mark]]:
    """Scratch databases of drills that nobody works on any more. What restores have left or keep is not touched."""
    kind = settings.kind("database")
    for alias in dict.fromkeys([*kind.subjects(), *settings.drill_databases.values()]):
        for item in _beside(kind, alias):
            mark = Mark.parse(item.mark)
            if item.kept or mark is None or not runs.is_lost_attempt(mark.run, mark.token, Kind.DRILL):
                continue
            if _done(partial(settle_of, kind, alias, item.mark, {}), item.place):
                yield alias, mark


def _beside(kind: ArtifactKind, alias: str) -> list[Beside]:
    try:
        return list(beside_of(kind, alias))
    except Exception as error:  # noqa: BLE001 - a server that is away must not keep the others
        logger.warning("What is left beside %s could not be looked for: %s", alias, redact(str(error)))
        return []


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


def _done(remove: Callable[[], object], what: str) -> bool:
    try:
        remove()
    except Exception as error:  # noqa: BLE001 - a storage raises what it likes, and the others are still to come
        logger.warning("%s could not be removed: %s", what, redact(str(error)))
        return False
    return True
