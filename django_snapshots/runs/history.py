"""What earlier runs have found out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence, Set
from datetime import timedelta
from typing import Any

from django.db.models.functions import Coalesce

from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.manifest import Snapshot
from django_snapshots.models import FINAL_STATES, Kind, Run, State
from django_snapshots.runs.begin import LABEL_LENGTH
from django_snapshots.runs.clock import DatabaseNow
from django_snapshots.runs.place import alias
from django_snapshots.runs.steps import local


def known_storage_id(storage_label: str) -> str | None:
    """The id that the storage at this place had when a run last used it."""
    last = Run.objects.using(alias()).filter(storage_label=storage_label[:LABEL_LENGTH]).exclude(storage_id="").first()
    return last.storage_id if last else None


def known_bad(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """The names of those of *snapshots* that a verify or restore has found damaged, with what is known.

    A verify that went well later, and looked as deep, clears the name. What was found before a snapshot was taken was
    found of another one with its name.
    """
    taken = {snapshot.name: snapshot.created_at for snapshot in snapshots}
    ended = Run.objects.using(alias()).filter(
        kind__in=(Kind.VERIFY, Kind.RESTORE), state__in=(State.SUCCEEDED, State.FAILED), finished_at__isnull=False
    )
    bad: dict[str, tuple[int, str]] = {}
    for run in ended.order_by("finished_at").only("kind", "state", "name", "request", "error_type", "created_at"):
        if run.name not in taken or run.created_at < local(taken[run.name]):
            continue
        level = run.request.get("level", 2) if run.kind == Kind.VERIFY else 2
        if run.state == State.FAILED and run.error_type == SnapshotIntegrityError.__name__:
            bad[run.name] = (level, f"known to be damaged, by {run.kind} run {run.pk}")
        elif run.state == State.SUCCEEDED and run.kind == Kind.VERIFY and level >= bad.get(run.name, (0, ""))[0]:
            bad.pop(run.name, None)
    return {name: text for name, (_, text) in bad.items()}


def reserved_by(storage_id: str, name: str, *, besides: uuid.UUID | None = None) -> Run | None:
    """The live run, *besides* the one that asks, that has reserved *name*."""
    holders = Run.objects.using(alias()).filter(reservation=f"{storage_id}/{name}")
    return holders.exclude(pk__in=[besides] if besides else []).first()


def ended_before(storage_id: str, wanted: Set[uuid.UUID], seconds: float) -> set[uuid.UUID]:
    """Those of *wanted* that used this storage and have been in a final state for more than *seconds*."""
    ended = Run.objects.using(alias()).filter(pk__in=wanted, storage_id=storage_id, state__in=FINAL_STATES)
    old = ended.annotate(moved=Coalesce("touched_at", "finished_at", "created_at")).filter(
        moved__lt=DatabaseNow() - timedelta(seconds=seconds)
    )
    return set(old.values_list("pk", flat=True))


def published(wanted: Set[uuid.UUID]) -> set[tuple[uuid.UUID, str]]:
    """The files that those of *wanted* which have succeeded have published, each with its run."""
    rows = Run.objects.using(alias()).filter(pk__in=wanted, kind=Kind.SNAPSHOT, state=State.SUCCEEDED)
    return {
        (run, str(artifact["filename"]))
        for run, result in rows.values_list("pk", "result")
        for artifact in (result or {}).get("artifacts", ())
    }


def lately(limit: int) -> list[Run]:
    """Runs that have ended, the last one first."""
    ended = Run.objects.using(alias()).filter(state__in=FINAL_STATES, finished_at__isnull=False)
    return list(ended.order_by("-finished_at")[:limit])


def live(limit: int = 50) -> list[Run]:
    """Runs that have not ended, the oldest first."""
    rows = Run.objects.using(alias()).filter(state__in=(State.QUEUED, State.RUNNING))
    return list(rows.order_by("created_at")[:limit])


def requests_of(kind: Kind) -> list[dict[str, Any]]:
    """What was asked for in the latest runs of *kind*."""
    rows = Run.objects.using(alias()).filter(kind=kind).order_by("-created_at")
    return list(rows.values_list("request", flat=True)[:_LATEST])


_LATEST = 200
