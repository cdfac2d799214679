"""What becomes of what a dead worker held: the next attempt, or the end of its run.

Nobody is asked whether the worker is dead. Its lease is over by the database's clock, that is all; if it only slept, it
finds at its next look that it has lost the step, and nothing that it says counts any more.
"""

from __future__ import annotations

import uuid
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
"""What another worker begins anew when one is lost."""
SETTLED = (Kind.RESTORE, Kind.UNDO)
"""What isn't begun anew: another worker finds out what became of each target, and brings that to its end. However
often that takes: the run has its locks until then, or until somebody gives it up (``give_up_settling``)."""
_LOOKED_AT = "what became of its targets is looked at"
_LONGEST_PAUSE = 300.0
_MOST_DOUBLINGS = 10
NOT_TO_BE_SETTLED = ~Q(run__kind__in=SETTLED, token__gt=0)
"""Of steps that nobody holds: those that may end without anybody's look at their targets."""
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
        goes_on = _LOOKED_AT if run.kind in SETTLED else "begun anew"
        # What a dead restore has left stands in the way of everybody: it is looked at without a pause.
        at_once = run.kind in SETTLED and step.attempts == 1
        pause = None if at_once else later(step.attempts)
        with transaction.atomic(using=alias()):
            changed = held.update(**anew(), error=f"{silence}; {goes_on}.", not_before=pause)
            if changed:
                begin_later_phases_anew(step)
                hand_to_workers(run.pk)
        return bool(changed)
    return _fail(run, held, SnapshotError(f"{silence}{_why_not_again(run, step)}"))


def _gets_another_attempt(run: Run, step: Step, limits: Limits) -> bool:
    if run.kind in SETTLED:
        return True
    return (
        run.kind in BEGUN_ANEW
        and not run.inline
        and run.cancel_requested_at is None
        and step.attempts < limits.attempts
    )


def _why_not_again(run: Run, step: Step) -> str:
    if run.inline:
        return ": it was killed, or its machine stopped. Ask again."
    if run.cancel_requested_at is not None:
        return ", after the run was cancelled."
    return (
        f", like that of each of its {step.attempts} attempts: something in it kills workers, such as a want of "
        "memory. Look into the worker's and the kernel's log."
    )


def is_to_be_settled(step: Step) -> bool:
    """Whether an attempt before has perhaps begun to replace something, which its end can't be without."""
    return step.run.kind in SETTLED and step.token > 0


def cause_of(step: Step) -> str:
    """Why *step*, which waits to be settled, was not brought to its end by its own worker, as far as that is known."""
    if step.error.endswith(_LOOKED_AT + "."):
        silence = step.error.removesuffix(f"; {_LOOKED_AT}.")
        return f"{silence}: it was killed or stopped, or its machine was, or it could not reach the journal."
    said = step.error.strip() or "nothing is known of it"
    return f"{step} stopped in the middle: {said}{'' if said.endswith('.') else '.'}"


def hand_to_workers(run: uuid.UUID) -> None:
    """Inside of the transaction that takes a restore from its process: any worker settles it, also an inline one."""
    Run.objects.using(alias()).filter(pk=run, kind__in=SETTLED).update(inline=False)


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


def later(attempts: int) -> Any:
    """When the next attempt may begin, after so many."""
    pause = min(_LONGEST_PAUSE, get_limits().lease / 6 * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS))
    return DatabaseNow(pause)


def _fail(run: Run, held: Any, error: SnapshotError) -> bool:
    with transaction.atomic(using=alias()):
        changed = held.update(state=State.FAILED, finished_at=timezone.now(), **describe(error))
        if changed:
            drop_siblings(run.pk)
    return bool(changed)


def drop_siblings(run: uuid.UUID) -> None:
    """What was not begun of a run that has failed is not begun any more."""
    waiting = Step.objects.using(alias()).filter(NOT_TO_BE_SETTLED, run=run, state=State.QUEUED)
    waiting.update(state=State.CANCELLED, finished_at=timezone.now(), error=_NOT_BEGUN)


def give_up(run: Run, error: SnapshotError) -> None:
    """Fail the steps of *run* that nobody has taken and nobody will."""
    waiting = Step.objects.using(alias()).filter(NOT_TO_BE_SETTLED, run=run, state=State.QUEUED)
    waiting.update(state=State.FAILED, finished_at=timezone.now(), **describe(error))
