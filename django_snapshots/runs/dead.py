"""What becomes of what a dead worker held: the next attempt, or the end of its run.

Nobody is asked whether the worker is dead. Its lease is over by the database's clock, that is all; if it only slept, it
finds at its next look that it has lost the step, and nothing that it says counts any more.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from django_snapshots.conf import Limits, get_limits
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.runs.clock import DatabaseNow
from django_snapshots.runs.errors import describe
from django_snapshots.runs.place import alias

BEGUN_ANEW = (Kind.SNAPSHOT, Kind.VERIFY, Kind.DRILL, Kind.DELETE, Kind.PRUNE)
"""What another worker begins anew when one is lost. A restore isn't: a person should look at the target first."""
_LONGEST_PAUSE = 300.0
_NOT_BEGUN = "Not begun, because another step failed."


def end_dead_steps(run: Run) -> bool:
    """Take from dead workers what they hold of *run*; whether there was anything."""
    limits = get_limits()
    dead = list(Step.objects.using(alias()).filter(_DEAD, run=run, state=State.RUNNING))
    return sum(_take_from(run, step, limits) for step in dead) > 0


def dead_steps() -> list[Step]:
    """Every step that a worker holds whose lease is over."""
    return list(Step.objects.using(alias()).filter(_DEAD, state=State.RUNNING).select_related("run"))


_DEAD = Q(lease_until__lt=DatabaseNow()) | Q(lease_until=None)


def _take_from(run: Run, step: Step, limits: Limits) -> bool:
    held = Step.objects.using(alias()).filter(_DEAD, pk=step.pk, token=step.token, state=State.RUNNING)
    silence = f"{step}: its worker {step.holder} gave no sign of life for {limits.lease:.0f} s"
    if _gets_another_attempt(run, step, limits):
        pause = min(_LONGEST_PAUSE, limits.lease / 6 * 2 ** (step.attempts - 1))
        with transaction.atomic(using=alias()):
            changed = held.update(**anew(), error=f"{silence}; begun anew.", not_before=_later(pause))
            if changed:
                begin_later_phases_anew(step)
        return bool(changed)
    return _fail(run, held, SnapshotError(f"{silence}{_why_not_again(run, step)}"))


def _gets_another_attempt(run: Run, step: Step, limits: Limits) -> bool:
    return (
        run.kind in BEGUN_ANEW
        and not run.inline
        and run.cancel_requested_at is None
        and step.attempts < limits.attempts
    )


def _why_not_again(run: Run, step: Step) -> str:
    if run.inline:
        return ": it was killed, or its machine stopped. Ask again."
    if run.kind not in BEGUN_ANEW:
        return ": it was killed, or its machine stopped. Look at what it was to replace before you ask again."
    if run.cancel_requested_at is not None:
        return ", after the run was cancelled."
    return (
        f", like that of each of its {step.attempts} attempts: something in it kills workers, such as a want of "
        "memory. Look into the worker's and the kernel's log."
    )


def begin_later_phases_anew(step: Step) -> None:
    """Inside of the transaction that gives *step* back: what a later phase has done so far is void.

    Its moment has to be later than every moment of this phase: a row that is new by then may point at a file. The token
    grows here already, so that neither a holder nor whoever is just claiming can go on from the moment that is gone.
    """
    later = Step.objects.using(alias()).filter(run=step.run_id, phase__gt=step.phase)
    later.filter(state__in=(State.QUEUED, State.RUNNING, State.SUCCEEDED)).update(
        **anew(), attempts=0, token=F("token") + 1
    )


def anew() -> dict[str, Any]:
    """The fields of a step that waits for its next attempt."""
    return {"state": State.QUEUED, "lease_until": None, "moment": None, "hinted_at": None, "hints": 0}


def _later(seconds: float) -> Any:
    return DatabaseNow() + timedelta(seconds=seconds)


def _fail(run: Run, held: Any, error: SnapshotError) -> bool:
    with transaction.atomic(using=alias()):
        changed = held.update(state=State.FAILED, finished_at=timezone.now(), **describe(error))
        if changed:
            drop_siblings(run.pk)
    return bool(changed)


def drop_siblings(run: uuid.UUID) -> None:
    """What was not begun of a run that has failed is not begun any more."""
    waiting = Step.objects.using(alias()).filter(run=run, state=State.QUEUED)
    waiting.update(state=State.CANCELLED, finished_at=timezone.now(), error=_NOT_BEGUN)


def give_up(run: Run, error: SnapshotError) -> None:
    """Fail the steps of *run* that nobody has taken and nobody will."""
    waiting = Step.objects.using(alias()).filter(run=run, state=State.QUEUED)
    waiting.update(state=State.FAILED, finished_at=timezone.now(), **describe(error))
