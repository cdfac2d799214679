"""Looking after the journal: what nobody holds gets its next attempt, its end, or its message again.

Every move is conditional on what it found, so any number of processes may sweep at once. It sends nothing itself: it
returns what to send.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import connections
from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_snapshots.conf import get_limits
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import FINAL_STATES, Housekeeping, Run, State, Step
from django_snapshots.runs import cancel, finish, steps
from django_snapshots.runs.clock import DatabaseNow
from django_snapshots.runs.dead import SETTLED, end_dead_steps, give_up
from django_snapshots.runs.place import alias

_LONGEST_PAUSE = 600.0
_MOST_DOUBLINGS = 10
_LATE = 5
_OFTEN = 5


@dataclass(kw_only=True)
class Swept:
    """What a sweep found that takes more than the journal."""

    ask_again: list[Run] = field(default_factory=list)
    """Queued runs whose message was lost, or that wait for something that may be free now."""
    begin: list[int] = field(default_factory=list)
    """Steps that any worker may take."""
    finish: list[uuid.UUID] = field(default_factory=list)
    """Runs all of whose steps have ended, and that nobody finishes."""
    tell: list[Run] = field(default_factory=list)
    """Runs that have ended and whose result nobody was given."""


def is_due(every: float) -> bool:
    """Whether the last sweep began more than *every* seconds ago; then this caller has the turn."""
    return _turn("swept_at", every)


def is_collection_due(every: float) -> bool:
    """Whether the storage was last looked through more than *every* seconds ago; then this caller has the turn."""
    return _turn("collected_at", every)


def since_sweep() -> float | None:
    """Seconds since the journal was last swept, by the database's clock; ``None`` if it never was."""
    times = Housekeeping.objects.using(alias()).annotate(now=DatabaseNow()).values("now", "swept_at").first()
    if times is None or times["swept_at"] is None:
        return None
    return max(0.0, (times["now"] - times["swept_at"]).total_seconds())


def database_time() -> datetime:
    """What the database's clock says now; aware."""
    rows = Housekeeping.objects.using(alias())
    rows.get_or_create(pk=1)
    moment: datetime = rows.annotate(now=DatabaseNow()).values_list("now", flat=True).get(pk=1)
    if not timezone.is_naive(moment):
        return moment
    # Without USE_TZ PostgreSQL answers in the project's time zone; the others are asked for UTC.
    return timezone.make_aware(moment, None if connections[alias()].vendor == "postgresql" else UTC)


def is_late() -> bool:
    """Whether nobody has swept for so long that nobody may be going to."""
    since = since_sweep()
    return since is None or since > get_limits().sweep() * _LATE


def _turn(name: str, every: float) -> bool:
    rows = Housekeeping.objects.using(alias())
    rows.get_or_create(pk=1)
    old = Q(**{name: None}) | Q(**{f"{name}__lt": DatabaseNow(-every)})
    return bool(rows.filter(old, pk=1).update(**{name: DatabaseNow()}))


def sweep() -> Swept:
    """Take from the dead what they hold, and say what is to be sent."""
    swept = Swept(tell=list(finish.untold()))
    for run in Run.objects.using(alias()).filter(state__in=(State.QUEUED, State.RUNNING)).order_by("created_at"):
        sweep_run(run, swept)
    return swept


def sweep_run(run: Run, swept: Swept) -> None:
    """The same for one run that has not ended. What it says has to be sent: nobody else is told for a while."""
    swept.finish += end_dead(run)
    if run.inline:
        return
    if run.state == State.QUEUED:
        _refuse_expired(run)
        swept.ask_again += _queued(run)
    else:
        swept.begin += _due_steps(run)


def end_dead(run: Run) -> list[uuid.UUID]:
    """Take from the dead what they hold of one run; return it if it is to be finished. There is nothing to be sent."""
    if run.state == State.RUNNING and end_dead_steps(run):
        run.refresh_from_db(using=alias())
    if run.cancel_requested_at is not None and run.publishing_at is None:
        cancel.drop_waiting(run)
    if run.inline:
        _sweep_inline(run)
    return _to_finish(run)


def unsettled(run: Run) -> list[int]:
    """Steps of a restore that nobody holds and somebody has to settle now."""
    rows = Step.objects.using(alias()).filter(_free("not_before"), run=run, state=State.QUEUED, token__gt=0)
    return list(rows.filter(run__kind__in=SETTLED).values_list("pk", flat=True))


def is_unsettled(step: int) -> bool:
    """Whether a step is of a restore whose targets have to be looked at."""
    return Step.objects.using(alias()).filter(pk=step, run__kind__in=SETTLED, token__gt=0, state=State.QUEUED).exists()


def long_unsettled() -> list[Step]:
    """Steps of restores of which it was tried often, and in vain, to find out what became of their targets."""
    rows = Step.objects.using(alias()).filter(state=State.QUEUED, attempts__gt=_OFTEN, run__kind__in=SETTLED)
    return list(rows.filter(run__state=State.RUNNING).select_related("run"))


def _sweep_inline(run: Run) -> None:
    """Nobody else goes on with what one process has begun."""
    if not _is_silent(run):
        return
    error = SnapshotError(
        f"The process that did it ({run.requested_from}) was killed, or its machine stopped. Ask again."
    )
    finish.refuse(run, error)
    give_up(run, error)


def _is_silent(run: Run) -> bool:
    """Whether nothing of *run* has moved, and nobody holds any of it, for the time of a lease."""
    rows = Run.objects.using(alias()).filter(pk=run.pk, state__in=(State.QUEUED, State.RUNNING))
    silent = rows.annotate(moved=Coalesce("touched_at", "created_at")).filter(_free("lease_until"), moved__lt=_ago())
    return silent.exists() and not _someone_holds(run)


def _someone_holds(run: Run) -> bool:
    return Step.objects.using(alias()).filter(run=run, state=State.RUNNING, lease_until__gte=DatabaseNow()).exists()


def _free(name: str) -> Q:
    return Q(**{name: None}) | Q(**{f"{name}__lt": DatabaseNow()})


def _ago(times: float = 1.0) -> Any:
    return DatabaseNow(-get_limits().lease * times)


def _refuse_expired(run: Run) -> None:
    late = Run.objects.using(alias()).filter(pk=run.pk, state=State.QUEUED, expires_at__lt=DatabaseNow())
    if late.exists():
        finish.refuse(run, SnapshotError("No worker took it in time: it was not begun when the next one was due."))


def _queued(run: Run) -> list[Run]:
    rows = Run.objects.using(alias()).filter(_free("not_before"), pk=run.pk, state=State.QUEUED)
    # One that waits for a lock is asked at every sweep: its message has been taken, and nobody will send it another.
    pause = 0.0 if run.not_before else _pause(run.hints)
    old = rows.annotate(moved=Coalesce("hinted_at", "touched_at", "created_at")).filter(moved__lt=DatabaseNow(-pause))
    if not old.exists():
        return []
    rows.update(hinted_at=DatabaseNow(), hints=F("hints") + 1)
    return [run]


def _pause(hints: int) -> float:
    """Seconds between two messages for the same thing: it may only be waiting for a worker, behind other work."""
    return min(_LONGEST_PAUSE, get_limits().lease * 2.0 ** min(hints, _MOST_DOUBLINGS))


def _due_steps(run: Run) -> list[int]:
    """Steps that may begin, and whose message is old enough to be lost."""
    due = []
    for step in _ready_steps(run):
        rows = Step.objects.using(alias()).filter(_free("not_before"), pk=step.pk, state=State.QUEUED)
        lost = Q(hinted_at=None) | Q(hinted_at__lt=DatabaseNow(-_pause(step.hints)))
        if rows.filter(lost).exists():
            due.append(step.pk)
    steps.hinted(due)
    return due


def _ready_steps(run: Run) -> Iterator[Step]:
    found = list(Step.objects.using(alias()).filter(run=run))
    for step in found:
        earlier = [other for other in found if other.phase < step.phase]
        if step.state == State.QUEUED and all(item.moment or item.state in FINAL_STATES for item in earlier):
            yield step


def _to_finish(run: Run) -> list[uuid.UUID]:
    """A run that nobody finishes; whoever ended its last step is given a moment to do it."""
    if Step.objects.using(alias()).filter(run=run).exclude(state__in=FINAL_STATES).exists():
        return []
    rows = Run.objects.using(alias()).filter(_free("lease_until"), pk=run.pk, state=State.RUNNING)
    idle = rows.filter(Q(touched_at=None) | Q(touched_at__lt=_ago(1 / 6)))
    return [run.pk] if idle.exists() else []


def waiting() -> list[Run]:
    """Queued runs that wait for something that another run had; asked when one has ended."""
    rows = Run.objects.using(alias()).filter(state=State.QUEUED, inline=False, not_before__isnull=False)
    return list(rows.order_by("created_at")[:20])
