"""The end of a run: exactly one holder at a time may bring it about, and nothing moves it out of a final state.

Who can die when: a finisher dies, and its lease runs out; the next one does the same again, which gives the same
result (``catalog``). From ``publishing_at`` on a cancel comes too late. What a finisher has moved is taken back only
after ``retreating_at`` is written, which only the holder of the last token can: then no finisher after it goes
forward, and none before it, awake again after a sleep, can take back what a later one has published.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from django_snapshots.conf import get_limits
from django_snapshots.exceptions import SnapshotCancelled, SnapshotError
from django_snapshots.models import FINAL_STATES, Run, State, Step
from django_snapshots.runs import locks
from django_snapshots.runs.clock import DatabaseNow, Lease, seconds_since_boot
from django_snapshots.runs.errors import describe, rebuild
from django_snapshots.runs.place import alias, holder
from django_snapshots.runs.steps import Verdict, cancellation


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The right to finish a run, as long as nobody has it with a higher token."""

    run: Run
    token: int
    lease: Lease = field(compare=False, repr=False)
    last: bool = False
    """Whether every attempt at it was lost, and this one only ends it."""


def claim_finish(run: uuid.UUID) -> Finish | None:
    """Take the right to finish a run all of whose steps have ended; one caller at a time gets it."""
    limits = get_limits()
    lease, asked_at = Lease(limits.lease), seconds_since_boot()
    unfinished = Step.objects.using(alias()).filter(run=run).exclude(state__in=FINAL_STATES)
    rows = Run.objects.using(alias()).filter(pk=run, state=State.RUNNING)
    seen = rows.values_list("token", flat=True).first()
    if seen is None or unfinished.exists():
        return None
    free = rows.filter(Q(lease_until=None) | Q(lease_until__lt=DatabaseNow()), token=seen)
    changed = free.update(
        token=seen + 1,
        holder=holder(),
        lease_until=DatabaseNow(lease.seconds),
        touched_at=DatabaseNow(),
    )
    if not changed:
        return None
    lease.renewed(asked_at)
    found = Run.objects.using(alias()).get(pk=run)
    return Finish(run=found, token=seen + 1, lease=lease, last=seen >= limits.attempts)


def is_being_finished(run: uuid.UUID) -> bool:
    """Whether somebody holds the right to finish a run."""
    rows = Run.objects.using(alias()).filter(pk=run, state=State.RUNNING, lease_until__gte=DatabaseNow())
    return rows.exists()


def renew_finish(claimed: Finish) -> Verdict:
    """Show a sign of life; the verdict says whether to go on. Raises ``django.db.Error`` while the journal is away."""
    asked_at = seconds_since_boot()
    lease_until = DatabaseNow(claimed.lease.seconds)
    if not _held(claimed).update(lease_until=lease_until, touched_at=DatabaseNow()):
        return Verdict(lost=True, must_end=_lost())
    claimed.lease.renewed(asked_at)
    return Verdict(must_end=cancelled(claimed.run))


def release_finish(claimed: Finish) -> None:
    """Give the right back: the next worker goes on at once."""
    _held(claimed).update(lease_until=None, token=claimed.token, touched_at=None)


def cancelled(run: Run) -> SnapshotCancelled | None:
    """The error of a run that somebody has cancelled before its way back was closed."""
    rows = Run.objects.using(alias()).filter(pk=run.pk, cancel_requested_at__isnull=False, publishing_at=None)
    found = rows.first()
    return cancellation(found) if found else None


def close_the_way_back(claimed: Finish) -> None:
    """From here on the run is published, by this finisher or by another one; a cancel comes too late.

    Raises ``SnapshotCancelled`` if it was cancelled, is taken back, or is somebody else's.
    """
    forward = _held(claimed).filter(Q(cancel_requested_at=None) | Q(publishing_at__isnull=False), retreating_at=None)
    if not forward.update(publishing_at=timezone.now()):
        raise cancelled(claimed.run) or _lost()


def retreat(claimed: Finish, error: BaseException) -> None:
    """From here on the run is taken back, by this finisher or by another one, and ends with *error*.

    Raises ``SnapshotCancelled`` if it is somebody else's: then nothing of it may be taken back.
    """
    if not _held(claimed).update(retreating_at=timezone.now(), **describe(error)):
        raise _lost()


def _lost() -> SnapshotCancelled:
    return SnapshotCancelled("This finisher has lost the run to another one and ends.")


def succeed(claimed: Finish, result: Mapping[str, Any]) -> bool:
    """End a run well, whatever went wrong on the way; false if somebody else ended it before."""
    return _end(_held(claimed), claimed.run, state=State.SUCCEEDED, result=dict(result), error="", error_type="")


def end_with(claimed: Finish, error: BaseException) -> bool:
    """End a run with *error*: failed, or cancelled; false if somebody else ended it before."""
    return _end(_held(claimed), claimed.run, **_badly(error))


def refuse(run: Run, error: BaseException) -> bool:
    """End a run that has not begun, with *error*; false if it has begun or ended in the meantime."""
    return _end(Run.objects.using(alias()).filter(pk=run.pk, state=State.QUEUED), run, **_badly(error))


def _badly(error: BaseException) -> dict[str, Any]:
    state = State.CANCELLED if isinstance(error, SnapshotCancelled) else State.FAILED
    return {"state": state, **describe(error)}


def _end(rows: Any, run: Run, **fields: Any) -> bool:
    with transaction.atomic(using=alias()):
        changed = rows.update(
            reservation=None, lease_until=None, finished_at=timezone.now(), touched_at=DatabaseNow(), **fields
        )
        if changed:
            locks.free(run)
    run.refresh_from_db(using=alias())
    return bool(changed)


def _held(claimed: Finish) -> Any:
    return Run.objects.using(alias()).filter(pk=claimed.run.pk, token=claimed.token, state=State.RUNNING)


def first_failure(run: Run) -> SnapshotError | None:
    """Why the run can't succeed: that of the finisher which has begun to take it back, or of the step that failed
    first, with what it worked on; ``None`` if all went well."""
    if run.retreating_at is not None:
        return rebuild(run.error_type, run.error)
    ended = Step.objects.using(alias()).filter(run=run).exclude(state=State.SUCCEEDED)
    failed = ended.filter(state=State.FAILED).order_by("finished_at").first() or ended.order_by("finished_at").first()
    if failed is None:
        return None
    return rebuild(failed.error_type, failed.error) if failed.error else SnapshotError(f"{failed} did not end well.")


def told(run: Run) -> None:
    """Note that whoever waits for the result has got it."""
    Run.objects.using(alias()).filter(pk=run.pk).update(told_at=timezone.now())


def untold() -> Sequence[Run]:
    """Runs that have ended, and whose result was not given to whoever waits for it."""
    ended = Run.objects.using(alias()).filter(state__in=FINAL_STATES, told_at=None, inline=False)
    return list(ended.exclude(task_id="").filter(finished_at__isnull=False)[:_AT_ONCE])


_AT_ONCE = 100
