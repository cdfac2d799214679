"""What earlier runs have found out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence, Set
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_snapshots.conf import get_settings
from django_snapshots.manifest import Snapshot
from django_snapshots.models import FINAL_STATES, Kind, Run, State, Step
from django_snapshots.plan import DRILL_LEVEL, LEVELS
from django_snapshots.proof import DAMNING, Proof, can_be_drilled
from django_snapshots.runs.begin import LABEL_LENGTH
from django_snapshots.runs.clock import DatabaseNow
from django_snapshots.runs.place import alias
from django_snapshots.runs.steps import local


def known_storage_id(storage_label: str) -> str | None:
    """The id that the storage at this place had when a run last used it."""
    last = Run.objects.using(alias()).filter(storage_label=storage_label[:LABEL_LENGTH]).exclude(storage_id="").first()
    return last.storage_id if last else None


def judged(snapshots: Sequence[Snapshot]) -> dict[str, list[Proof]]:
    """For each of *snapshots*, by name, what verifies, drills and restores have said of it.

    What was found before a snapshot was taken was found of another one with its name.
    """
    taken = {snapshot.name: snapshot for snapshot in snapshots}
    ended = Run.objects.using(alias()).filter(
        kind__in=DAMNING, state__in=(State.SUCCEEDED, State.FAILED), finished_at__isnull=False
    )
    found: dict[str, list[Proof]] = {}
    deep = _had_begun_to_build(ended)
    for run in ended.only("kind", "state", "name", "request", "error_type", "created_at", "finished_at"):
        if run.name not in taken or run.created_at < local(taken[run.name].created_at):
            continue
        ok = run.state == State.SUCCEEDED
        # That a restore succeeded proves no more than the verify that it begins with.
        if run.error_type in DAMNING[run.kind] or (ok and run.kind != Kind.RESTORE):
            level = _deepest(taken[run.name]) if run.pk in deep else _level(run)
            found.setdefault(run.name, []).append(_proof(run, ok=ok, level=level))
    return found


def _had_begun_to_build(ended: QuerySet[Run]) -> set[uuid.UUID]:
    """Those restores among *ended* that had read every stored byte and found it good before they failed: what is wrong
    is in the content then."""
    failed = ended.filter(kind=Kind.RESTORE, state=State.FAILED)
    built = Step.objects.using(alias()).filter(run__in=failed, record__isnull=False)
    return set(built.values_list("run", flat=True))


def _deepest(snapshot: Snapshot) -> int:
    """The level of what looks deepest into *snapshot*, which alone clears it of what a restore has found in it."""
    return DRILL_LEVEL if can_be_drilled(get_settings(), snapshot) else max(LEVELS)


def _level(run: Run) -> int:
    return DRILL_LEVEL if run.kind == Kind.DRILL else int(run.request.get("level", 2))


def _proof(run: Run, *, ok: bool, level: int) -> Proof:
    ended: Any = run.finished_at
    at = timezone.make_aware(ended) if timezone.is_naive(ended) else ended
    return Proof(kind=run.kind, level=level, ok=ok, at=at, run=str(run.pk))


def reserved_by(storage_id: str, name: str, *, besides: uuid.UUID | None = None) -> Run | None:
    """The live run, *besides* the one that asks, that has reserved *name*."""
    holders = Run.objects.using(alias()).filter(reservation=f"{storage_id}/{name}")
    return holders.exclude(pk__in=[besides] if besides else []).first()


def ended_before(storage_id: str, wanted: Set[uuid.UUID], seconds: float) -> set[uuid.UUID]:
    """Those of *wanted* that used this storage and have been in a final state for more than *seconds*."""
    ended = Run.objects.using(alias()).filter(pk__in=wanted, storage_id=storage_id, state__in=FINAL_STATES)
    old = ended.annotate(moved=Coalesce("touched_at", "finished_at", "created_at")).filter(
        moved__lt=DatabaseNow(-seconds)
    )
    return set(old.values_list("pk", flat=True))


def is_lost_attempt(run: uuid.UUID, token: int, kind: Kind) -> bool:
    """Whether nobody has a right any more to what the attempt *token* of a run of *kind* has left: the run has ended,
    or a later attempt has its step. A run that this journal does not know is somebody else's."""
    found = Run.objects.using(alias()).filter(pk=run, kind=kind)
    later = Step.objects.using(alias()).filter(run=run, run__kind=kind, token__gt=token)
    return found.filter(state__in=FINAL_STATES).exists() or later.exists()


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


def requests_with(kind: Kind, key: str) -> list[dict[str, Any]]:
    """What was asked for in every run of *kind* whose request says something under *key*."""
    rows = Run.objects.using(alias()).filter(kind=kind, request__has_key=key).order_by("-created_at")
    return list(rows.values_list("request", flat=True))


def changed_nothing(wanted: Set[uuid.UUID]) -> set[uuid.UUID]:
    """Those restores and undos of *wanted* that have ended before they had switched anything."""
    ended = Run.objects.using(alias()).filter(pk__in=wanted, state__in=FINAL_STATES, publishing_at=None)
    return set(ended.exclude(state=State.SUCCEEDED).values_list("pk", flat=True))


def result_of(run: uuid.UUID) -> dict[str, Any] | None:
    """What came of *run*; ``None`` if it has not succeeded, or is not in this journal."""
    found = Run.objects.using(alias()).filter(pk=run, state=State.SUCCEEDED).values_list("result", flat=True).first()
    return dict(found) if found else None
