"""What prunes and deletes take from the journal and give to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.utils import timezone

from django_snapshots import backup, runs
from django_snapshots import prune as pruning
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotError,
)
from django_snapshots.execution.expiry import expire
from django_snapshots.execution.place import place_of
from django_snapshots.plan import Request
from django_snapshots.proof import not_relied_on
from django_snapshots.retention import Policy


def prune_with_journal(
    settings: Settings, request: Request, *, check: Callable[[], None], run: uuid.UUID
) -> dict[str, Any]:
    if request.kept:
        return {"removed": expire(settings, run)}
    wanted, catalog = _prune_request(settings, request), Catalog(settings.storage)
    if request.dry_run:
        return pruning.plan_prune(catalog, wanted).to_json()
    report = pruning.prune(
        catalog,
        wanted,
        delete=lambda decision: delete_snapshot(decision.name, run=run, made_by=decision.run),
        hold=lambda decision: runs.add(run, runs.snapshot_lock(decision.name, exclusive=False)),
        check=check,
    )
    return report.to_json()


def _prune_request(settings: Settings, request: Request) -> pruning.PruneRequest:
    policy = settings.retention
    if isinstance(request.retention, Mapping):
        policy = Policy.parse(request.retention, "retention")
    if policy is None:
        raise SnapshotConfigurationError(
            'There is nothing to prune by: set SNAPSHOTS["RETENTION"], such as {"keep_last": 7}, or give a policy.'
        )
    place = place_of(settings)
    expected = runs.known_storage_id(place) if place else None
    catalog = Catalog(settings.storage)
    return pruning.PruneRequest(
        policy=policy,
        now=backup.utc_now(),
        timezone=timezone.get_default_timezone(),
        project=settings.project,
        environment=settings.environment,
        storage_id=catalog.storage_id(expected=expected, create=False),
        like=request.like,
        only=None if request.only is None else frozenset(request.only),
        known_bad=lambda snapshots: not_relied_on(catalog, snapshots, runs.judged(snapshots)),
    )


def plan_prune(request: Request) -> dict[str, Any]:
    """What a prune would do now; deletes nothing, and leaves no trace in the journal. Raises as a prune does."""
    require_journal()
    settings = get_settings()
    return pruning.plan_prune(Catalog(settings.storage), _prune_request(settings, request)).to_json()


def require_journal() -> None:
    if not runs.available():
        raise SnapshotError(
            "A prune needs the journal, which says which snapshots are in use or known to be damaged; nothing was "
            "deleted. Is the database there, and migrated?"
        )


def delete_snapshot(name: str, *, run: uuid.UUID | None = None, made_by: str | None = None) -> None:
    """Delete the snapshot called *name* now; *run* is the journal's run that does it, if one does.

    With *made_by* only the snapshot that this run has made, whatever else has got the name since. Raises
    ``SnapshotNotFoundError``, ``SnapshotBusyError`` while a run uses it or is to, and refuses one whose manifest can't
    be read.
    """
    lock = runs.snapshot_lock(name, exclusive=True)
    # A journal that has this run says who uses the snapshot, or fails: one that is away now says nothing.
    if run is None:
        if runs.available():
            runs.require_free(lock)
        Catalog(get_settings().storage).delete(name)
        return
    catalog = Catalog(get_settings().storage)
    # Seen before the journal has said that the run goes on. Whoever sleeps behind that deletes no other snapshot, that
    # has got the name since.
    seen = made_by or catalog.run_of(name)
    runs.add(run, lock)
    runs.require_unwanted(name)
    catalog.delete(name, run=seen)
    runs.drop(run, lock.key)
