"""The Celery tasks: thin, ids and plain JSON in, plain JSON out.

``snapshot.delay()`` plans a run and sends a message for each of its steps; any worker dumps any step; whoever ends
the last one finishes the run and stores the result under the id of the task that was called. The journal owns the
work: a message is a hint, and one that is doubled finds nothing to do.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from celery import Task, shared_task
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore
from celery.result import AsyncResult
from django.db import connections, transaction

from django_snapshots import execution, runs, schedules, working
from django_snapshots.conf import get_limits, get_queue
from django_snapshots.exceptions import SnapshotBusyError, SnapshotConfigurationError, SnapshotError
from django_snapshots.messages import PREFIX, publish_again, publish_ready, send
from django_snapshots.models import Kind, Run
from django_snapshots.plan import Request
from django_snapshots.redaction import redact
from django_snapshots.results import NoBackend

logger = logging.getLogger("django_snapshots")

COLLECTION_SECONDS = 3600.0
"""How often the storage is looked through for garbage."""


class SnapshotTask(Task):  # type: ignore[type-arg]
    """Sends to the queue in ``SNAPSHOTS["QUEUE"]``, which is read when the first message is sent."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        return get_queue()

    def apply_async(  # type: ignore[override]
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Record the run in the journal, and then send the message, which may be lost without harm.

        Inside of ``transaction.atomic()`` it is sent when that is committed; if that is rolled back, there is no run. A
        broker that is away is told in the log: a sweep sends the message later. Where there is no journal the message
        is all there is. Raises ``SnapshotError`` for arguments that no run can have.
        """
        kind = self.name.removeprefix(PREFIX)
        if kind not in Kind.values or self.app.conf.task_always_eager or not runs.available():
            return super().apply_async(args, kwargs, task_id, **options)
        request = Request.from_json(inspect.signature(self.run).bind(*(args or ()), **(kwargs or {})).arguments)
        task_id = task_id or str(uuid.uuid4())
        try:
            run = _begin(Kind(kind), request, task_id, expires=_seconds_until(options.get("expires")))
        except SnapshotBusyError as doubled:
            logger.info("%s", doubled)
            return self.AsyncResult(task_id)
        if connections[runs.alias()].in_atomic_block:
            transaction.on_commit(lambda: publish_again(run, **options), using=runs.alias())
        else:
            publish_again(run, **options)
        return self.AsyncResult(task_id)

    def AsyncResult(self, task_id: str, **options: Any) -> AsyncResult[Any]:
        """What ``delay()`` returns; where there is no result backend it says so when it is asked."""
        result = super().AsyncResult(task_id, **options)
        if isinstance(result.backend, DisabledBackend):
            result.backend = NoBackend(app=self.app)
        return result


_OPTIONS: dict[str, Any] = {
    "base": SnapshotTask,
    "serializer": "json",
    "acks_late": False,
    "throws": (SnapshotError,),
}


@shared_task(bind=True, name="django_snapshots.snapshot", ignore_result=False, **_OPTIONS)
def snapshot(
    self: SnapshotTask,
    name: str | None = None,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    metadata: dict[str, Any] | None = None,
    retention: dict[str, int] | bool | None = None,
    schedule: str | None = None,
    wait: float | None = None,
    allow_empty: bool = False,
) -> dict[str, Any]:
    """Take a snapshot; the result is ``{"name", "run", "created_at", "size", "artifacts"}``.

    *name* may be a template, and defaults to ``SNAPSHOTS["NAME"]``; *databases* and *artifacts* default to what the
    settings include; *metadata* is plain JSON for the manifest. *retention* is a policy, or true for
    ``SNAPSHOTS["RETENTION"]``, by which snapshots like this one are pruned once it has succeeded. *schedule* names the
    schedule that asked. *allow_empty* takes one also where it is empty and the snapshot before wasn't. With *wait*,
    seconds, it waits for another run that has one of its databases; else it is refused at once with
    ``SnapshotBusyError``.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "metadata": metadata,
        "retention": retention,
        "schedule": schedule,
        "wait": wait,
        "allow_empty": allow_empty,
    }
    return _run(self, Kind.SNAPSHOT, data)


@shared_task(bind=True, name="django_snapshots.restore", ignore_result=False, **_OPTIONS)
def restore(
    self: SnapshotTask,
    name: str | None = None,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] | None = None,
    elsewhere: bool = False,
    into: dict[str, str] | None = None,
    database_names: dict[str, str] | None = None,
    tables: dict[str, Sequence[str]] | None = None,
    merge: bool = False,
    migrate: bool = False,
    no_owner: bool = False,
    wait: float | None = None,
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest; the result is the report.

    *confirm* holds the name of every target that isn't empty and may be replaced. *into* maps aliases of the snapshot
    to the aliases whose databases are replaced instead, *database_names* to names of other databases on their servers.
    *tables* maps aliases to the only tables whose rows are replaced; then nothing else is restored.
    *merge* leaves media files in place that the snapshot doesn't have. *migrate* runs the migrations that the restored
    databases lack, *no_owner* leaves out owners and grants. With *wait*, seconds, it waits for another run that has one
    of them. Where ``SNAPSHOTS["ALLOW_RESTORE"]`` is ``"requested"``, ask by ``django_snapshots.request_restore``.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "confirm": confirm,
        "elsewhere": elsewhere,
        "into": into,
        "database_names": database_names,
        "tables": tables,
        "merge": merge,
        "migrate": migrate,
        "no_owner": no_owner,
        "wait": wait,
    }
    return _run(self, Kind.RESTORE, data)


@shared_task(bind=True, name="django_snapshots.undo", ignore_result=False, **_OPTIONS)
def undo(
    self: SnapshotTask,
    undo: str | None = None,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] | None = None,
    wait: float | None = None,
) -> dict[str, Any]:
    """Put back what a restore has replaced; the result is the report.

    *undo* is the id of the restore's run, or the beginning of it; without it the latest restore is meant. *databases*
    and *artifacts* name parts of it, which alone are put back then. *confirm* holds the name of every target that is
    replaced. The undo keeps what it replaces, and can itself be undone.
    """
    data = {"undo": undo, "databases": databases, "artifacts": artifacts, "confirm": confirm, "wait": wait}
    return _run(self, Kind.UNDO, data)


@shared_task(bind=True, name="django_snapshots.verify", ignore_result=False, **_OPTIONS)
def verify(
    self: SnapshotTask,
    name: str | None = None,
    level: int = 2,
    schedule: str | None = None,
    wait: float | None = None,
) -> dict[str, Any]:
    """Verify the snapshot called *name*, or the latest, to *level* 1, 2 or 3; the result is the report, which is also
    kept beside the snapshot."""
    return _run(self, Kind.VERIFY, {"name": name, "level": level, "schedule": schedule, "wait": wait})


@shared_task(bind=True, name="django_snapshots.drill", ignore_result=False, **_OPTIONS)
def drill(
    self: SnapshotTask,
    name: str | None = None,
    schedule: str | None = None,
    wait: float | None = None,
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest, into scratch databases, check what came of it, and throw it
    away; the result is the report, which is also kept beside the snapshot. No target is touched."""
    return _run(self, Kind.DRILL, {"name": name, "schedule": schedule, "wait": wait})


@shared_task(bind=True, name="django_snapshots.prune", ignore_result=False, **_OPTIONS)
def prune(
    self: SnapshotTask,
    retention: dict[str, int] | bool | None = None,
    like: str | None = None,
    dry_run: bool = False,
    only: Sequence[str] | None = None,
    schedule: str | None = None,
) -> dict[str, Any]:
    """Delete what *retention*, a policy, or ``SNAPSHOTS["RETENTION"]`` no longer keeps.

    With *like*, the name of a snapshot, only among those of the same aliases and artifacts; with *only*, names, only
    these. With *dry_run* nothing is deleted. The result is ``{"dry_run", "deleted", "kept"}``, each snapshot with its
    reasons.
    """
    if retention is False:
        raise SnapshotConfigurationError("A prune needs a policy: retention=False names none. Nothing was deleted.")
    data = {"retention": retention, "like": like, "dry_run": dry_run, "only": only, "schedule": schedule}
    return _run(self, Kind.PRUNE, data)


@shared_task(bind=True, name="django_snapshots.delete", ignore_result=False, **_OPTIONS)
def delete(self: SnapshotTask, name: str, wait: float | None = None) -> dict[str, Any]:
    """Delete the snapshot called *name*; the result is ``{"deleted": name}``."""
    return _run(self, Kind.DELETE, {"name": name, "wait": wait})


@shared_task(name="django_snapshots.cancel", ignore_result=True, **_OPTIONS)
def cancel(run: str, by: str = "a task") -> None:
    """Cancel the run with this id. Where every worker is busy this waits behind them: ``django_snapshots.cancel_run``
    doesn't."""
    working.cancel_run(run, by=by)


@shared_task(name="django_snapshots.step", ignore_result=True, **_OPTIONS)
def step(step_id: int) -> None:
    """Work on one step, and finish the run if it was the last."""
    working.work(step_id)


@shared_task(name="django_snapshots.finish", ignore_result=True, **_OPTIONS)
def finish(run_id: str) -> None:
    """Finish a run all of whose steps have ended, if nobody does."""
    working.conclude(uuid.UUID(run_id))


@shared_task(name="django_snapshots.sweep", ignore_result=True, **_OPTIONS)
def sweep(schedule: str | None = None) -> None:  # noqa: ARG001 - every periodic task of ours says its schedule
    """Look after the journal and the storage: begin again, end, or send anew what nobody holds; remove garbage."""
    if runs.is_due(get_limits().sweep() / 2):
        working.sweep()
    if runs.is_collection_due(COLLECTION_SECONDS):
        execution.collect()


def request_restore(
    name: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] = (),
    elsewhere: bool = False,
    into: dict[str, str] | None = None,
    database_names: dict[str, str] | None = None,
    tables: dict[str, Sequence[str]] | None = None,
    merge: bool = False,
    migrate: bool = False,
    no_owner: bool = False,
    wait: float | None = None,
    requested_by: str = "",
) -> AsyncResult[dict[str, Any]]:
    """Have a worker restore the snapshot called *name*, or the latest, also where ``SNAPSHOTS["ALLOW_RESTORE"]`` is
    ``"requested"``: the request is recorded in the journal first, which no message can do.

    Ask whether the user may before you call it; *requested_by* is who that is, as text. The arguments are those of the
    ``restore`` task, and so is the result, whose ``id`` is the run's. Raises ``SnapshotError`` if the broker is away.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "confirm": confirm,
        "elsewhere": elsewhere,
        "into": into,
        "database_names": database_names,
        "tables": tables,
        "merge": merge,
        "migrate": migrate,
        "no_owner": no_owner,
        "wait": wait,
    }
    requester = runs.Requester(name=requested_by, source="code")
    result: AsyncResult[dict[str, Any]] = restore.AsyncResult(
        send(Kind.RESTORE, Request.from_json(data), requester).task_id
    )
    return result


def _run(task: SnapshotTask, kind: Kind, data: dict[str, Any]) -> dict[str, Any]:
    """Begin a run and leave its result to the finish; in eager mode, or called as a function, do it all here."""
    request = Request.from_json(data)
    if task.request.called_directly or task.request.is_eager:
        # A request that is in the journal already, when it comes from the admin, keeps its run.
        run_id = _run_id(str(task.request.id)) if task.request.id else None
        result = execution.run_inline(kind, request, run_id=run_id, requester=runs.Requester(source="code"))
        if kind == Kind.SNAPSHOT:
            working.prune_after(runs.get(uuid.UUID(str(result["run"]))))
        return result
    task_id = str(task.request.id)
    try:
        run = _begin(kind, request, task_id)
    except SnapshotBusyError as doubled:
        logger.info("%s", doubled)
        raise Ignore from None
    try:
        execution.launch(run)
    except SnapshotError:
        runs.told(run)  # Celery stores what is raised here
        raise
    try:
        publish_ready(run.pk)
    except Exception as error:  # noqa: BLE001 - each broker has errors of its own
        logger.warning("The steps of run %s could not be sent yet: %s", run.pk, redact(str(error)))
    raise Ignore


def _begin(kind: Kind, request: Request, task_id: str, *, expires: float | None = None) -> Run:
    run, _ = runs.begin(
        kind,
        request,
        run=_run_id(task_id),
        requester=working.requester_of(request),
        task_id=task_id,
        slot=schedules.slot_of(request.schedule) if request.schedule else None,
        expires=expires,
    )
    return run


def _seconds_until(expires: float | datetime | None) -> float | None:
    """Celery's option ``expires`` in seconds from now."""
    if isinstance(expires, datetime):
        now = datetime.now(expires.tzinfo)
        return (expires - now).total_seconds()
    return None if expires is None else float(expires)


def _run_id(task_id: str) -> uuid.UUID:
    """The run's id is the task's, so that a message that comes twice finds its run; Celery's ids are UUIDs unless
    somebody chose another."""
    with contextlib.suppress(ValueError):
        return uuid.UUID(task_id)
    return uuid.uuid5(uuid.NAMESPACE_OID, task_id)
