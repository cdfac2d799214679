"""Cancelling: a flag in the journal, which every holder reads; what nobody holds ends at once."""

from __future__ import annotations

import uuid

from django.core.exceptions import ValidationError
from django.db.models import F
from django.utils import timezone

from django_snapshots.exceptions import SnapshotError, SnapshotNotFoundError
from django_snapshots.models import FINAL_STATES, Run, State, Step
from django_snapshots.runs.dead import NOT_TO_BE_SETTLED, SETTLED, end_dead_steps
from django_snapshots.runs.errors import describe
from django_snapshots.runs.finish import refuse
from django_snapshots.runs.place import alias
from django_snapshots.runs.steps import cancellation


def get(run: uuid.UUID) -> Run:
    """The run as the journal tells it now."""
    return Run.objects.using(alias()).get(pk=run)


def find(text: str) -> Run:
    """The run whose id is *text*, or begins with it; raises ``SnapshotNotFoundError``."""
    wanted = text.strip().lower().replace("-", "")
    if len(wanted) == 32:
        try:
            found = Run.objects.using(alias()).filter(pk=wanted).first()
        except (ValueError, ValidationError):
            found = None
        if found is not None:
            return found
    if 6 <= len(wanted) < 32 and not set(wanted) - set("0123456789abcdef"):
        low, high = (uuid.UUID(wanted.ljust(32, digit)) for digit in "0f")
        found_runs = list(Run.objects.using(alias()).filter(pk__gte=low, pk__lte=high)[:2])
        if len(found_runs) == 1:
            return found_runs[0]
    raise SnapshotNotFoundError(f"There is no run {text!r}, or more than one; `manage.py snapshots status` lists them.")


def can_be_cancelled(run: Run) -> bool:
    """Whether a cancel of *run* could still be asked for, and wasn't."""
    return run.state not in FINAL_STATES and run.cancel_requested_at is None and run.publishing_at is None


def request_cancel(run: uuid.UUID, by: str) -> Run:
    """Ask a run to end; return it. What works on it ends within two seconds, what nobody has begun at once.

    Asked twice is asked once. Raises ``SnapshotError`` for a run that has ended, or can't go back any more.
    """
    open_runs = Run.objects.using(alias()).filter(pk=run, state__in=(State.QUEUED, State.RUNNING), publishing_at=None)
    asked = open_runs.filter(cancel_requested_at=None).update(
        cancel_requested_at=timezone.now(), cancel_requested_by=by[:255]
    )
    found = get(run)
    if not asked and (found.state in FINAL_STATES or found.cancel_requested_at is None):
        what = f"has ended: {found.state}" if found.state in FINAL_STATES else "is at its last move, and can't go back"
        raise SnapshotError(f"The {found.kind} run {found.pk} {what}; there is nothing to cancel.")
    drop_waiting(found)
    return get(run)


def give_up_settling(run: uuid.UUID, by: str) -> Run:
    """End a restore or undo of which it can't be told what became of its targets: somebody has looked at them.

    Its locks are free with its end. Raises ``SnapshotError`` for a run of which nothing is to be settled, and while
    somebody is settling it.
    """
    found = get(run)
    if found.state == State.RUNNING:
        end_dead_steps(found)
    step = Step.objects.using(alias()).filter(run=run, token__gt=0).first() if found.kind in SETTLED else None
    if found.state != State.RUNNING or step is None or step.state in FINAL_STATES:
        raise SnapshotError(
            f"Of the {found.kind} run {found.pk} nothing waits to be settled; there is nothing to give up."
        )
    error = SnapshotError(
        f"Given up by {by or 'somebody'} after {step.attempts} attempts: what became of its targets was not found out, "
        f"and each may be as before, restored, or half of each. {step.error}"
    )
    waiting = Step.objects.using(alias()).filter(pk=step.pk, token=step.token, state=State.QUEUED)
    if not waiting.update(
        state=State.FAILED, token=F("token") + 1, finished_at=timezone.now(), lease_until=None, **describe(error)
    ):
        raise SnapshotError(f"A worker is settling the {found.kind} run {found.pk} at this moment; look again later.")
    return found


def drop_waiting(run: Run) -> None:
    """End what nobody has begun of a cancelled run."""
    error = cancellation(run)
    if run.state == State.QUEUED:
        refuse(run, error)
    waiting = Step.objects.using(alias()).filter(NOT_TO_BE_SETTLED, run=run, state=State.QUEUED)
    waiting.update(state=State.CANCELLED, finished_at=timezone.now(), **describe(error))
