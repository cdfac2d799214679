"""Who works with what: locks on what a thing physically is, held by a run from its start to its end.

Who can die when: a lock belongs to a run, and is gone in the transaction that ends the run. So a dead run blocks until
its lease is over; whoever finds it in the way then ends it, and doesn't wait for the next sweep.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.utils import timezone

from django_snapshots.exceptions import SnapshotBusyError, SnapshotCancelled, SnapshotError
from django_snapshots.models import FINAL_STATES, Housekeeping, Kind, Lock, Run, State, Step
from django_snapshots.runs.clock import DatabaseNow
from django_snapshots.runs.dead import SETTLED
from django_snapshots.runs.place import alias

_KEY_LENGTH = 255
_JOURNAL = "journal:"
_READING = (Kind.RESTORE, Kind.VERIFY, Kind.DRILL)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One thing that a run will work with."""

    key: str
    """What it physically is; equal for two names of one thing."""
    what: str
    """In words, for the error: ``database default``."""
    exclusive: bool = True
    """Whether nobody else may work with it at the same time; else nobody may exclusively."""


class InTheWay(Exception):
    """Another run has *what* is wanted; *error* is what to tell the user, unless that run turns out to be dead."""

    def __init__(self, run: Run, error: SnapshotError, what: str) -> None:
        super().__init__(str(error))
        self.run = run
        self.error = error
        self.what = what

    def why(self) -> str:
        """What to tell of a run that waits."""
        name = f" of {self.run.name!r}" if self.run.name else ""
        return f"{self.what} is in use by the {self.run.kind} run {self.run.pk}{name}; waits for its end."


def snapshot_lock(name: str, *, exclusive: bool) -> Wanted:
    """The lock on a stored snapshot: shared to read it, exclusive to delete it."""
    return Wanted(key=f"snapshot:{name}", what=f"Snapshot {name!r}", exclusive=exclusive)


def journal_lock() -> Wanted:
    """The lock on the journal's own rows: exclusively for a restore that sets them aside; every other run is let in
    only while nobody has that."""
    return Wanted(key=_JOURNAL, what="The journal")


def only_run(run: uuid.UUID) -> None:
    """Let no other run begin before *run* has ended. Raises ``SnapshotBusyError`` while another one is at work."""
    try:
        with transaction.atomic(using=alias()):
            take_turn()
            others = Run.objects.using(alias()).filter(state=State.RUNNING).exclude(pk=run).order_by("created_at")
            if (rival := others.first()) is not None:
                raise SnapshotBusyError(
                    "The restore would set the rows of all runs aside for its time, and what the "
                    f"{rival.kind} run {rival.pk} writes meanwhile would be lost. Nothing was changed. "
                    f"{_what_to_do(rival)}"
                )
            take(run, [journal_lock()])
    except InTheWay as busy:
        raise busy.error from None


def take_turn() -> None:
    """Inside of a transaction: wait until nobody else looks at the locks, until the transaction ends."""
    rows = Housekeeping.objects.using(alias()).filter(pk=1)
    while not rows.update(turn=F("turn") + 1):
        try:
            with transaction.atomic(using=alias()):
                Housekeeping.objects.using(alias()).create(pk=1)
        except IntegrityError:
            continue  # somebody else has just made it


def take(run: uuid.UUID, wanted: Sequence[Wanted]) -> None:
    """Give *run* its locks, all or none; inside of a transaction that has its turn. Raises ``InTheWay``."""
    rows = Lock.objects.using(alias()).filter(key=_JOURNAL).exclude(run=run).select_related("run")
    if (holder := rows.exclude(run__state__in=FINAL_STATES).first()) is not None:
        raise InTheWay(holder.run, _busy(holder.run, journal_lock()), "The journal")
    for item in _strongest(wanted):
        key = _short(item.key)
        others = Lock.objects.using(alias()).filter(key=key).exclude(run=run).select_related("run")
        rival = others.filter(Q() if item.exclusive else Q(exclusive=True)).exclude(run__state__in=FINAL_STATES).first()
        if rival is not None:
            raise InTheWay(rival.run, _busy(rival.run, item), item.what)
        Lock.objects.using(alias()).update_or_create(
            run_id=run, key=key, defaults={"exclusive": item.exclusive, "what": item.what[:_KEY_LENGTH]}
        )


def add(run: uuid.UUID, wanted: Wanted) -> None:
    """Give a run that is at work one lock more, until ``drop`` or its end.

    Raises ``SnapshotBusyError``, and ``SnapshotCancelled`` if the run has ended: then it has slept, and nothing that it
    saw before has to be so still.
    """
    try:
        with transaction.atomic(using=alias()):
            take_turn()
            # The update holds the row, so that the run can't end before it has the lock.
            if not Run.objects.using(alias()).filter(pk=run, state=State.RUNNING).update(touched_at=DatabaseNow()):
                raise SnapshotCancelled(f"Run {run} has ended in the meantime; nothing more is done for it.")
            take(run, [wanted])
    except InTheWay as busy:
        raise busy.error from None


def has(run: uuid.UUID, key: str) -> bool:
    """Whether *run* has this already, for itself alone."""
    return Lock.objects.using(alias()).filter(run=run, key=_short(key), exclusive=True).exists()


def drop(run: uuid.UUID, key: str) -> None:
    """Take one lock of *run* back."""
    Lock.objects.using(alias()).filter(run=run, key=_short(key)).delete()


def require_free(wanted: Wanted, *, besides: uuid.UUID | None = None) -> None:
    """Raise ``SnapshotBusyError`` while a run, other than *besides*, holds what is wanted."""
    others = Lock.objects.using(alias()).filter(key=_short(wanted.key)).exclude(run__state__in=FINAL_STATES)
    others = others.exclude(run=besides) if besides else others
    rival = others.filter(Q() if wanted.exclusive else Q(exclusive=True)).select_related("run").first()
    if rival is not None:
        raise _busy(rival.run, wanted)


def require_unwanted(name: str) -> None:
    """Raise ``SnapshotBusyError`` while somebody waits for a restore, verify or drill of the snapshot called *name*,
    which holds nothing before it has begun."""
    waiting = Run.objects.using(alias()).filter(kind__in=_READING, state=State.QUEUED, name=name)
    if (rival := waiting.first()) is not None:
        raise _busy(rival, snapshot_lock(name, exclusive=True))


def free(run: Run) -> None:
    """Take all locks of a run that has ended."""
    Lock.objects.using(alias()).filter(run=run).delete()


def _busy(run: Run, wanted: Wanted) -> SnapshotBusyError:
    # Two naive times, or two aware ones, as the project has them.
    age = max(0, int((timezone.now() - run.created_at).total_seconds()))
    return SnapshotBusyError(
        f"{wanted.what} is in use by {run.kind} run {run.pk}{f' of {run.name!r}' if run.name else ''}, which was asked "
        f"for {age} s ago. {_what_to_do(run)}"
    )


def _what_to_do(run: Run) -> str:
    """One that has to be settled first can't be cancelled."""
    waiting = Step.objects.using(alias()).filter(run=run, token__gt=0, state=State.QUEUED)
    if run.kind in SETTLED and (step := waiting.first()) is not None:
        return (
            f"What became of its targets has to be found out first. {step.error} A worker, or `manage.py snapshots "
            f"sweep`, tries that again; `manage.py snapshots status {run.pk}` says how it goes."
        )
    return (
        f"Wait for its end, cancel it (`manage.py snapshots cancel {run.pk}`), or ask to wait for it (wait=SECONDS, or "
        "--wait)."
    )


def _strongest(wanted: Sequence[Wanted]) -> list[Wanted]:
    """One for each key; two aliases of one database are one thing. Without a key there is nothing to lock."""
    found: dict[str, Wanted] = {}
    for item in wanted:
        if item.key and (item.exclusive or item.key not in found):
            found[item.key] = item
    return [found[key] for key in sorted(found)]


def _short(key: str) -> str:
    return key if len(key) <= _KEY_LENGTH else f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
