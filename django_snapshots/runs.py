"""The journal's moves: begin, claim, observe, end a step, finish. Every move is one conditional update.

Who can die when, and what then holds: a row changes hands only by an update that names the state and the token it
expects, so of two workers that try the same move one sees no row changed and leaves. Tokens only grow; an attempt's
object carries its token in its name, so that a late writer can't touch its successor's. Leases and the sweep that
ends what a dead worker held build on these moves.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import IntegrityError, connections, router, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.utils import timezone

from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotCancelled,
    SnapshotError,
    SnapshotExistsError,
    SnapshotIntegrityError,
)
from django_snapshots.manifest import Snapshot
from django_snapshots.models import FINAL_STATES, Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan
from django_snapshots.redaction import redact

_ERROR_LENGTH = 20_000
_TYPE_LENGTH = 100
_LABEL_LENGTH = 255


@dataclass(frozen=True, kw_only=True)
class Requester:
    """Who asked, and through what."""

    name: str = ""
    key: str = ""
    source: str = "code"
    """``task``, ``command``, ``admin``, ``schedule`` or ``code``."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to work on a step, as long as nobody has claimed it with a higher token."""

    step: int
    token: int


def alias() -> str:
    """The database that holds the journal."""
    return router.db_for_write(Run)


def tables() -> frozenset[str]:
    """The journal's tables."""
    return frozenset({Run._meta.db_table, Step._meta.db_table})


def available() -> bool:
    """Whether the journal can be written: its database answers and its tables are there."""
    try:
        connection = connections[alias()]
        if connection.connection is not None and not connection.in_atomic_block and not connection.is_usable():
            # The server has ended a connection that this process kept; that says nothing about the journal.
            connection.close()
        with connection.cursor() as cursor:
            return tables() <= set(connection.introspection.table_names(cursor))
    except (DatabaseError, ImproperlyConfigured):
        return False


def holder() -> str:
    """This process, for people and for telling two attempts apart."""
    return f"{socket.gethostname()}:{os.getpid()}"


# Begin


def require_no_transaction() -> None:
    """Raise ``SnapshotError`` inside of ``transaction.atomic()``, except in a Django TestCase, which is in one always.

    Nobody else would see the run there: no thread of it, and nobody whom its reserved name should stop.
    """
    connection = connections[alias()]
    if connection.in_atomic_block and not getattr(connection.atomic_blocks[-1], "_from_testcase", False):
        raise SnapshotError(
            "Nothing can be taken, restored or verified inside of transaction.atomic(): what the block has written "
            "is not in the database yet. Do it after the block, or hand it to the workers."
        )


def begin(
    kind: Kind,
    request: Request,
    *,
    run: uuid.UUID | None = None,
    requester: Requester | None = None,
    task_id: str = "",
) -> tuple[Run, bool]:
    """Record that somebody asked; return the run and whether it is new. The same id twice is one run."""
    requester = requester or Requester()
    return Run.objects.using(alias()).get_or_create(
        pk=run or uuid.uuid4(),
        defaults={
            "kind": kind,
            "request": request.to_json(),
            "name": request.name or "",
            "requested_by": requester.name[:255],
            "requested_by_key": requester.key[:255],
            "requested_from": requester.source,
            "task_id": task_id,
        },
    )


def known_storage_id(storage_label: str) -> str | None:
    """The id that the storage at this place had when a run last used it."""
    last = Run.objects.using(alias()).filter(storage_label=storage_label[:_LABEL_LENGTH]).exclude(storage_id="").first()
    return last.storage_id if last else None


def start(
    run: Run, steps: Sequence[PlannedStep], *, name: str, storage_id: str, storage_label: str, reserve: bool
) -> list[Step]:
    """Give a queued run its steps and, if it is to publish, reserve its name in the storage.

    Raises ``SnapshotExistsError`` if another live run has the name.
    """
    try:
        with transaction.atomic(using=alias()):
            changed = (
                Run.objects.using(alias())
                .filter(pk=run.pk, state=State.QUEUED)
                .update(
                    state=State.RUNNING,
                    name=name,
                    storage_id=storage_id,
                    storage_label=storage_label[:_LABEL_LENGTH],
                    reservation=f"{storage_id}/{name}" if reserve else None,
                    started_at=timezone.now(),
                )
            )
            if changed:
                Step.objects.using(alias()).bulk_create(
                    Step(run=run, position=item.position, phase=item.phase, type=item.type, subject=item.subject)
                    for item in steps
                )
    except IntegrityError as error:
        raise SnapshotExistsError(
            f"Another run is making a snapshot {name!r} at this moment; choose another name or wait for its end."
        ) from error
    run.refresh_from_db(using=alias())
    return steps_of(run)


def steps_of(run: Run) -> list[Step]:
    """The run's steps, in order."""
    return list(Step.objects.using(alias()).filter(run=run))


# Steps


def claim(step: int) -> Claim | None:
    """Take a queued step of a running run; ``None`` if somebody else has it, or nobody may have it any more."""
    rows = Step.objects.using(alias()).filter(pk=step, state=State.QUEUED)
    seen = rows.values_list("token", flat=True).first()
    if seen is None:
        return None
    # Conditions on the row itself: a join becomes a subquery, and a database that waits for another claim's lock then
    # looks at the row's old state. That a run goes on can be a subquery, because no claim changes it.
    running = Run.objects.using(alias()).filter(pk=OuterRef("run_id"), state=State.RUNNING)
    changed = rows.filter(Exists(running), token=seen).update(
        state=State.RUNNING,
        token=seen + 1,
        attempts=F("attempts") + 1,
        holder=holder(),
        started_at=timezone.now(),
        heartbeat_at=timezone.now(),
    )
    return Claim(step=step, token=seen + 1) if changed else None


def get(run: uuid.UUID) -> Run:
    """The run as the journal tells it now."""
    return Run.objects.using(alias()).get(pk=run)


def run_of(step: int) -> uuid.UUID:
    """The id of a step's run."""
    return Step.objects.using(alias()).values_list("run_id", flat=True).get(pk=step)


def note(claimed: Claim, **fields: Any) -> None:
    """Write *fields* of a step that is still ours; raise ``SnapshotCancelled`` if it isn't, or if the run must end."""
    fields = {name: _local(value) if isinstance(value, datetime) else value for name, value in fields.items()}
    changed = _held(claimed).update(heartbeat_at=timezone.now(), **fields)
    if not changed:
        raise SnapshotCancelled("This attempt has lost its step to another one and ends.")
    run = Run.objects.using(alias()).filter(steps=claimed.step)
    if run.filter(cancel_requested_at__isnull=False).exists():
        raise SnapshotCancelled("The run was cancelled.")
    if run.filter(steps__state=State.FAILED).exists():
        raise SnapshotCancelled("Another step of this run has failed.")


def _local(moment: datetime) -> datetime:
    """*moment* as the project keeps times; without ``USE_TZ`` SQLite and MySQL refuse one that has a zone."""
    return moment if settings.USE_TZ or timezone.is_naive(moment) else timezone.make_naive(moment)


def complete(claimed: Claim, record: Mapping[str, Any]) -> bool:
    """End a step well; false if it was not ours any more."""
    now = timezone.now()
    return bool(_held(claimed).update(state=State.SUCCEEDED, record=dict(record), finished_at=now))


def fail(claimed: Claim, error: BaseException) -> bool:
    """End a step badly; false if it was not ours any more. What was not begun of the run is not begun any more."""
    state = State.CANCELLED if isinstance(error, SnapshotCancelled) else State.FAILED
    with transaction.atomic(using=alias()):
        changed = _held(claimed).update(state=state, finished_at=timezone.now(), **describe(error))
        if changed:
            siblings = Step.objects.using(alias()).filter(run__steps=claimed.step, state=State.QUEUED)
            ids = list(siblings.values_list("pk", flat=True))
            Step.objects.using(alias()).filter(pk__in=ids, state=State.QUEUED).update(
                state=State.CANCELLED, finished_at=timezone.now(), error="Not begun, because another step failed."
            )
    return bool(changed)


def ready(run: uuid.UUID, *, after: int = -1) -> list[int]:
    """The queued steps of the phase that follows *after*, if every step up to *after* has fixed its moment or ended."""
    steps = list(Step.objects.using(alias()).filter(run=run))
    if any(step.moment is None and step.state not in FINAL_STATES for step in steps if step.phase <= after):
        return []
    phase = min((step.phase for step in steps if step.phase > after), default=None)
    return [step.pk for step in steps if step.state == State.QUEUED and step.phase == phase]


def _held(claimed: Claim) -> Any:
    return Step.objects.using(alias()).filter(pk=claimed.step, token=claimed.token, state=State.RUNNING)


# Finish


def claim_finish(run: uuid.UUID) -> Run | None:
    """Take the right to finish a run all of whose steps have ended; exactly one caller gets it."""
    unfinished = Step.objects.using(alias()).filter(run=run).exclude(state__in=FINAL_STATES)
    if unfinished.exists():
        return None
    changed = (
        Run.objects.using(alias())
        .filter(pk=run, state=State.RUNNING, token=0)
        .update(token=F("token") + 1, holder=holder())
    )
    return Run.objects.using(alias()).get(pk=run) if changed else None


def succeed(run: Run, result: Mapping[str, Any]) -> bool:
    """End a run well; false if somebody else ended it before."""
    return _end(run, state=State.SUCCEEDED, result=dict(result))


def end_with(run: Run, error: BaseException) -> bool:
    """End a run with *error*: failed, or cancelled."""
    state = State.CANCELLED if isinstance(error, SnapshotCancelled) else State.FAILED
    return _end(run, state=state, **describe(error))


def refuse(run: Run, error: BaseException) -> bool:
    """End a run that has not begun, with *error*; false if it has begun or ended in the meantime."""
    state = State.CANCELLED if isinstance(error, SnapshotCancelled) else State.FAILED
    return _end(run, among=(State.QUEUED,), state=state, **describe(error))


def give_up(run: uuid.UUID, error: BaseException) -> None:
    """Fail the steps of a run that nobody has taken and nobody will; those being worked on stop at their next note."""
    waiting = Step.objects.using(alias()).filter(run=run, state=State.QUEUED)
    waiting.update(state=State.FAILED, finished_at=timezone.now(), **describe(error))


def _end(run: Run, *, among: Sequence[State] = (State.QUEUED, State.RUNNING), **fields: Any) -> bool:
    open_run = Run.objects.using(alias()).filter(pk=run.pk, state__in=among)
    changed = open_run.update(reservation=None, finished_at=timezone.now(), **fields)
    run.refresh_from_db(using=alias())
    return bool(changed)


def first_failure(run: Run) -> SnapshotError | None:
    """The error of the step that failed first, with what it worked on; ``None`` if all went well."""
    ended = Step.objects.using(alias()).filter(run=run).exclude(state=State.SUCCEEDED)
    failed = ended.filter(state=State.FAILED).order_by("finished_at").first() or ended.order_by("finished_at").first()
    if failed is None:
        return None
    return rebuild(failed.error_type, failed.error) if failed.error else SnapshotError(f"{failed} did not end well.")


def reservations(storage_id: str, name: str, *, besides: uuid.UUID | None = None) -> bool:
    """Whether a live run, *besides* the one that asks, has reserved *name*."""
    holders = Run.objects.using(alias()).filter(reservation=f"{storage_id}/{name}")
    return holders.exclude(pk__in=[besides] if besides else []).exists()


def busy_with(name: str, *, besides: uuid.UUID | None = None) -> None:
    """Raise ``SnapshotBusyError`` while a run, *besides* the one that asks, works with the snapshot called *name*."""
    live = Q(state__in=(State.QUEUED, State.RUNNING))
    runs = Run.objects.using(alias()).filter(live, name=name)
    other = (runs.exclude(pk=besides) if besides else runs).first()
    if other is not None:
        raise SnapshotBusyError(f"Snapshot {name!r} is in use by {other.kind} run {other.pk}; wait for its end.")


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
        if run.name not in taken or run.created_at < _local(taken[run.name]):
            continue
        level = run.request.get("level", 2) if run.kind == Kind.VERIFY else 2
        if run.state == State.FAILED and run.error_type == SnapshotIntegrityError.__name__:
            bad[run.name] = (level, f"known to be damaged, by {run.kind} run {run.pk}")
        elif run.state == State.SUCCEEDED and run.kind == Kind.VERIFY and level >= bad.get(run.name, (0, ""))[0]:
            bad.pop(run.name, None)
    return {name: text for name, (_, text) in bad.items()}


# Errors


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the journal keeps it, without secrets."""
    text = str(error) if isinstance(error, SnapshotError) else f"{type(error).__name__}: {error}"
    return {"error": _storable(redact(text))[:_ERROR_LENGTH], "error_type": type(error).__name__[:_TYPE_LENGTH]}


def _storable(text: str) -> str:
    """*text* without what a database can't keep: NUL, and the surrogates of a file name that is no UTF-8."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def rebuild(error_type: str, text: str) -> SnapshotError:
    """The error that the journal kept; any that isn't ours becomes a plain ``SnapshotError``."""
    kind = next((item for item in _subclasses(SnapshotError) if item.__name__ == error_type), SnapshotError)
    try:
        return kind(text)
    except TypeError:  # somebody else's, which takes more than a message
        return SnapshotError(text)


def _subclasses(kind: type[SnapshotError]) -> list[type[SnapshotError]]:
    return [kind, *(below for direct in kind.__subclasses__() for below in _subclasses(direct))]


def planned(run: Run) -> SnapshotPlan:
    """The plan of a snapshot run, as the journal tells it."""
    steps = Step.objects.using(alias()).filter(run=run)
    return SnapshotPlan(
        run=run.pk.hex,
        name=run.name,
        steps=tuple(
            PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase)
            for step in steps
        ),
        metadata=run.request.get("metadata") or {},
    )
