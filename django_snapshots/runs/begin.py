"""The beginning of a run: recorded, planned, its name reserved, its locks taken."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from django_snapshots.exceptions import SnapshotBusyError, SnapshotExistsError
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan
from django_snapshots.runs import locks
from django_snapshots.runs.clock import DatabaseNow
from django_snapshots.runs.place import alias

LABEL_LENGTH = 255


@dataclass(frozen=True, kw_only=True)
class Requester:
    """Who asked, and through what."""

    name: str = ""
    key: str = ""
    source: str = "code"
    """``task``, ``command``, ``admin``, ``schedule`` or ``code``."""


def begin(
    kind: Kind,
    request: Request,
    *,
    run: uuid.UUID | None = None,
    requester: Requester | None = None,
    task_id: str = "",
    slot: str | None = None,
    inline: bool = False,
    expires: float | None = None,
) -> tuple[Run, bool]:
    """Record that somebody asked; return the run and whether it is new. The same id twice is one run.

    After *expires* seconds nobody begins it any more. Raises ``SnapshotBusyError`` if another run has been made for
    *slot*: the time of a schedule.
    """
    requester = requester or Requester()
    try:
        made, new = Run.objects.using(alias()).get_or_create(
            pk=run or uuid.uuid4(),
            defaults={
                "kind": kind,
                "request": request.to_json(),
                "name": request.name or "",
                "requested_by": requester.name[:255],
                "requested_by_key": requester.key[:255],
                "requested_from": requester.source,
                "task_id": task_id,
                "slot": slot,
                "inline": inline,
            },
        )
    except IntegrityError:
        raise SnapshotBusyError(f"There is a run for {slot} already; one is enough.") from None
    touch(made.pk)
    if new and expires is not None:
        Run.objects.using(alias()).filter(pk=made.pk).update(expires_at=DatabaseNow(expires))
    return made, new


def touch(run: uuid.UUID) -> None:
    """Note that a run has moved."""
    Run.objects.using(alias()).filter(pk=run).update(touched_at=DatabaseNow())


def start(
    run: Run,
    steps: Sequence[PlannedStep],
    *,
    name: str,
    storage_id: str,
    storage_label: str,
    reserve: bool,
    wanted: Sequence[locks.Wanted] = (),
) -> list[Step]:
    """Give a queued run its steps, its locks and, if it is to publish, its name in the storage.

    Raises ``InTheWay`` if another live run has the name or something of what is *wanted*, and ``SnapshotExistsError``
    if one had it a moment ago.
    """
    fields: dict[str, Any] = {
        "state": State.RUNNING,
        "name": name,
        "storage_id": storage_id,
        "storage_label": storage_label[:LABEL_LENGTH],
        "reservation": f"{storage_id}/{name}" if reserve else None,
        "started_at": timezone.now(),
        "touched_at": DatabaseNow(),
        "not_before": None,
        "error": "",
    }
    try:
        _start(run, steps, fields, wanted)
    except IntegrityError as error:
        rival = Run.objects.using(alias()).filter(reservation=fields["reservation"]).exclude(pk=run.pk).first()
        taken = SnapshotExistsError(
            f"Another run is making a snapshot {name!r} at this moment; choose another name or wait for its end."
        )
        if rival is None:
            raise taken from error
        raise locks.InTheWay(rival, taken, f"The name {name!r}") from error
    run.refresh_from_db(using=alias())
    return steps_of(run)


def _start(run: Run, steps: Sequence[PlannedStep], fields: dict[str, Any], wanted: Sequence[locks.Wanted]) -> None:
    with transaction.atomic(using=alias()):
        locks.take_turn()
        if Run.objects.using(alias()).filter(pk=run.pk, state=State.QUEUED).update(**fields):
            locks.take(run.pk, wanted)
            Step.objects.using(alias()).bulk_create(
                Step(run=run, position=item.position, phase=item.phase, type=item.type, subject=item.subject)
                for item in steps
            )


def wait(run: Run, seconds: float, why: str) -> None:
    """Leave a queued run queued for some seconds; *why* stands where its error would, until it begins or ends."""
    waiting = Run.objects.using(alias()).filter(pk=run.pk, state=State.QUEUED)
    waiting.update(not_before=DatabaseNow(seconds), touched_at=DatabaseNow(), error=why)


def remember(run: Run, request: Mapping[str, Any]) -> None:
    """Make a queued run's request say what it turned out to mean."""
    Run.objects.using(alias()).filter(pk=run.pk, state=State.QUEUED).update(request=dict(request))


def steps_of(run: Run) -> list[Step]:
    """The run's steps, in order."""
    return list(Step.objects.using(alias()).filter(run=run))


def planned(run: Run) -> SnapshotPlan:
    """The plan of a snapshot run, as the journal tells it."""
    return SnapshotPlan(
        run=run.pk.hex,
        name=run.name,
        steps=tuple(
            PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase)
            for step in steps_of(run)
        ),
        metadata=run.request.get("metadata") or {},
    )
