"""What happens to a step: claimed, kept alive, ended; each move one conditional update."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.utils import timezone

from django_snapshots.conf import get_limits
from django_snapshots.exceptions import SnapshotCancelled, SnapshotError
from django_snapshots.models import FINAL_STATES, Run, State, Step
from django_snapshots.runs.clock import DatabaseNow, Lease, seconds_since_boot
from django_snapshots.runs.dead import (
    anew,
    begin_later_phases_anew,
    drop_siblings,
    end_dead_steps,
    hand_to_workers,
    is_to_be_settled,
    later,
)
from django_snapshots.runs.errors import describe
from django_snapshots.runs.place import alias, holder


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to work on a step, as long as nobody has claimed it with a higher token."""

    step: int
    token: int
    lease: Lease = field(compare=False, repr=False, default_factory=lambda: Lease(0))
    settles: bool = False
    """Whether it is about what an attempt before it has left, which no cancel ends."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a holder hears when it renews its lease."""

    must_end: SnapshotError | None = None
    lost: bool = False
    """Whether the right is somebody else's, or nobody's; then nothing that this holder says counts."""


def claim(step: int) -> Claim | None:
    """Take a queued step of a running run; ``None`` if somebody else has it, or nobody may have it any more.

    One whose holder's lease is over is taken from it. One of a later phase waits for every earlier moment, whenever its
    message was sent.
    """
    lease, asked_at = Lease(get_limits().lease), seconds_since_boot()
    rows = Step.objects.using(alias()).filter(pk=step)
    seen = rows.select_related("run").first()
    if seen is None or (seen.state == State.RUNNING and not end_dead_steps(seen.run)) or _is_early(seen):
        return None
    rows = rows.filter(Q(not_before=None) | Q(not_before__lte=DatabaseNow()), state=State.QUEUED, token=seen.token)
    # Conditions on the row itself: a join becomes a subquery, and a database that waits for another claim's lock then
    # looks at the row's old state. That a run goes on can be a subquery, because no claim changes it.
    settles = is_to_be_settled(seen)
    going_on = Run.objects.using(alias()).filter(pk=OuterRef("run_id"), state=State.RUNNING)
    if not settles:
        going_on = going_on.filter(cancel_requested_at__isnull=True)
    changed = rows.filter(Exists(going_on)).update(
        state=State.RUNNING,
        token=seen.token + 1,
        attempts=F("attempts") + 1,
        holder=holder(),
        started_at=timezone.now(),
        heartbeat_at=timezone.now(),
        lease_until=DatabaseNow(lease.seconds),
    )
    if not changed:
        return None
    lease.renewed(asked_at)
    return Claim(step=step, token=seen.token + 1, lease=lease, settles=settles)


def _is_early(step: Step) -> bool:
    """Whether a step of an earlier phase has not fixed its moment yet."""
    earlier = Step.objects.using(alias()).filter(run=step.run_id, phase__lt=step.phase, moment=None)
    return earlier.exclude(state__in=FINAL_STATES).exists()


def run_of(step: int) -> uuid.UUID:
    """The id of a step's run."""
    return Step.objects.using(alias()).values_list("run_id", flat=True).get(pk=step)


def renew(claimed: Claim, **fields: Any) -> Verdict:
    """Show a sign of life, and write *fields* of the step; the verdict says whether to go on.

    Raises ``django.db.Error`` while the journal is away.
    """
    asked_at = seconds_since_boot()
    fields = {name: local(value) if isinstance(value, datetime) else value for name, value in fields.items()}
    changed = _held(claimed).update(
        heartbeat_at=timezone.now(),
        lease_until=DatabaseNow(claimed.lease.seconds),
        **fields,
    )
    if not changed:
        return Verdict(lost=True, must_end=SnapshotCancelled("This attempt has lost its step to another one and ends."))
    claimed.lease.renewed(asked_at)
    run = Run.objects.using(alias()).filter(steps=claimed.step)
    if claimed.settles:
        return Verdict()
    if (cancelled := run.filter(cancel_requested_at__isnull=False).first()) is not None:
        return Verdict(must_end=cancellation(cancelled))
    if run.filter(steps__state=State.FAILED).exists():
        return Verdict(must_end=SnapshotCancelled("Another step of this run has failed."))
    return Verdict()


def note(claimed: Claim, **fields: Any) -> None:
    """Write *fields* of a step that is still ours; raise ``SnapshotCancelled`` if it isn't, or if the run must end."""
    if (error := renew(claimed, **fields).must_end) is not None:
        raise error


def cancellation(run: Run) -> SnapshotCancelled:
    """The error of a run that somebody has cancelled."""
    return SnapshotCancelled(f"Cancelled by {run.cancel_requested_by or 'somebody'}.")


def local(moment: datetime) -> datetime:
    """*moment* as the project keeps times; without ``USE_TZ`` SQLite and MySQL refuse one that has a zone."""
    return moment if settings.USE_TZ or timezone.is_naive(moment) else timezone.make_naive(moment)


def close_the_way_back_of_step(claimed: Claim) -> None:
    """From here on the step goes to its end; a cancel comes too late. Raises ``SnapshotCancelled`` if one did come."""
    note(claimed)
    # By the run's own columns: a condition that comes with a join becomes a subquery, and a database that waits for the
    # cancel's lock then looks at the row as it was before.
    runs = Run.objects.using(alias()).filter(pk=run_of(claimed.step))
    if not runs.filter(cancel_requested_at=None).update(publishing_at=timezone.now()):
        raise cancellation(runs.get())


def complete(claimed: Claim, record: Mapping[str, Any]) -> bool:
    """End a step well; false if it was not ours any more. A second call, after a lost answer, tells the same."""
    # First, so that nobody sees a run of which nothing is held and nothing has moved for long: it would look dead.
    _touch(claimed)
    ended = _held(claimed).update(state=State.SUCCEEDED, record=dict(record), finished_at=timezone.now())
    done = Step.objects.using(alias()).filter(pk=claimed.step, token=claimed.token, state=State.SUCCEEDED)
    return bool(ended) or done.exists()


def fail(claimed: Claim, error: BaseException) -> bool:
    """End a step badly; false if it was not ours any more. What was not begun of the run is not begun any more."""
    state = State.CANCELLED if isinstance(error, SnapshotCancelled) else State.FAILED
    with transaction.atomic(using=alias()):
        changed = _held(claimed).update(state=state, finished_at=timezone.now(), **describe(error))
        if changed:
            drop_siblings(run_of(claimed.step))
            _touch(claimed)
    return bool(changed)


def release(claimed: Claim, why: str = "") -> bool:
    """Give a step back for the next worker, at once; false if it was not ours any more. *why* is for that worker.

    For a worker that is told to end: that is no fault of the step, and counts as no attempt.
    """
    with transaction.atomic(using=alias()):
        changed = _held(claimed).update(**anew(), not_before=None, attempts=F("attempts") - 1, error=why)
        if changed:
            begin_later_phases_anew(Step.objects.using(alias()).get(pk=claimed.step))
            hand_to_workers(run_of(claimed.step))
            _touch(claimed)
    return bool(changed)


def put_off(claimed: Claim, why: BaseException) -> bool:
    """Give back what can't be settled here or now; false if it was not ours any more."""
    with transaction.atomic(using=alias()):
        step = Step.objects.using(alias()).get(pk=claimed.step)
        changed = _held(claimed).update(**anew(), not_before=later(step.attempts), error=str(why))
        if changed:
            hand_to_workers(step.run_id)
            _touch(claimed)
    return bool(changed)


def ready(run: uuid.UUID, *, after: int = -1) -> list[int]:
    """The queued steps of the phase that follows *after*, if every step up to *after* has fixed its moment or ended."""
    steps = list(Step.objects.using(alias()).filter(run=run))
    if any(step.moment is None and step.state not in FINAL_STATES for step in steps if step.phase <= after):
        return []
    phase = min((step.phase for step in steps if step.phase > after), default=None)
    return [step.pk for step in steps if step.state == State.QUEUED and step.phase == phase]


def hinted(steps: list[int]) -> None:
    """Note that a message was sent for each of *steps*."""
    Step.objects.using(alias()).filter(pk__in=steps).update(hinted_at=DatabaseNow(), hints=F("hints") + 1)


def _touch(claimed: Claim) -> None:
    Run.objects.using(alias()).filter(steps=claimed.step).update(touched_at=DatabaseNow())


def _held(claimed: Claim) -> Any:
    return Step.objects.using(alias()).filter(pk=claimed.step, token=claimed.token, state=State.RUNNING)
