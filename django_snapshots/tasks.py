"""The Celery tasks: thin, ids and plain JSON in, plain JSON out.

``snapshot.delay()`` plans a run and sends a message for each of its steps; any worker dumps any step; whoever ends
the last one finishes the run and stores the result under the id of the task that was called. The journal owns the
work: a message is a hint, and one that is doubled finds nothing to do.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from billiard import current_process
from celery import Task, current_app, shared_task, states
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore
from celery.result import AsyncResult
from django.db import connections, transaction

from django_snapshots import execution, runs, schedules
from django_snapshots.conf import get_limits, get_queue
from django_snapshots.exceptions import SnapshotBusyError, SnapshotConfigurationError, SnapshotError
from django_snapshots.models import Kind, Run, State
from django_snapshots.plan import Request
from django_snapshots.redaction import redact
from django_snapshots.results import NoBackend

logger = logging.getLogger("django_snapshots")

COLLECTION_SECONDS = 3600.0
"""How often the storage is looked through for garbage."""
PROGRESS_SECONDS = 5.0
"""How often a run's progress is given to whoever waits for its task."""
_HINT_EXPIRES = 600.0
"""Seconds after which a message that was sent again is void: the next sweep sends another."""


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
        kind = self.name.rpartition(".")[2]
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
            transaction.on_commit(lambda: _publish_again(run), using=runs.alias())
        else:
            _publish_again(run, **options)
        return self.AsyncResult(task_id)

    def send(self, kwargs: dict[str, Any], task_id: str, **options: Any) -> None:
        """Send the message alone, for a run that is in the journal. Raises what the transport raises."""
        super().apply_async((), kwargs, task_id, **options)

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
) -> dict[str, Any]:
    """Take a snapshot; the result is ``{"name", "run", "created_at", "size", "artifacts"}``.

    *name* may be a template, and defaults to ``SNAPSHOTS["NAME"]``; *databases* and *artifacts* default to what the
    settings include; *metadata* is plain JSON for the manifest. *retention* is a policy, or true for
    ``SNAPSHOTS["RETENTION"]``, by which snapshots like this one are pruned once it has succeeded. *schedule* names the
    schedule that asked. With *wait*, seconds, it waits for another run that has one of its databases; else it is
    refused at once with ``SnapshotBusyError``.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "metadata": metadata,
        "retention": retention,
        "schedule": schedule,
        "wait": wait,
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
    wait: float | None = None,
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest; the result is the report.

    *confirm* holds the name of every target that isn't empty and may be replaced. With *wait*, seconds, it waits for
    another run that has one of them. Where ``SNAPSHOTS["ALLOW_RESTORE"]`` is ``"requested"``, ask by
    ``django_snapshots.request_restore`` instead.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "confirm": confirm,
        "elsewhere": elsewhere,
        "wait": wait,
    }
    return _run(self, Kind.RESTORE, data)


@shared_task(bind=True, name="django_snapshots.verify", ignore_result=False, **_OPTIONS)
def verify(
    self: SnapshotTask,
    name: str | None = None,
    level: int = 2,
    schedule: str | None = None,
    wait: float | None = None,
) -> dict[str, Any]:
    """Verify the snapshot called *name*, or the latest, to *level* 1 or 2; the result is the report."""
    return _run(self, Kind.VERIFY, {"name": name, "level": level, "schedule": schedule, "wait": wait})


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
    execution.cancel_run(run, by=by)


@shared_task(name="django_snapshots.step", ignore_result=True, **_OPTIONS)
def step(step_id: int) -> None:
    """Work on one step, and finish the run if it was the last."""
    try:
        run_id = execution.work(step_id, _hooks())
    except BaseException:
        # The worker is being shut down, and has given its step back or ended it.
        _ask_again(step_id)
        raise
    if run_id is not None:
        conclude(run_id)


@shared_task(name="django_snapshots.finish", ignore_result=True, **_OPTIONS)
def finish(run_id: str) -> None:
    """Finish a run all of whose steps have ended, if nobody does."""
    conclude(uuid.UUID(run_id))


@shared_task(name="django_snapshots.sweep", ignore_result=True, **_OPTIONS)
def sweep(schedule: str | None = None) -> None:  # noqa: ARG001 - every periodic task of ours says its schedule
    """Look after the journal and the storage: begin again, end, or send anew what nobody holds; remove garbage."""
    if runs.is_due(get_limits().sweep() / 2):
        send_swept(runs.sweep())
    if runs.is_collection_due(COLLECTION_SECONDS):
        execution.collect()


def _hooks() -> execution.Hooks:
    told = _Throttle(PROGRESS_SECONDS)
    return execution.Hooks(
        moment_fixed=lambda run, phase: aside("messages", lambda: publish_ready(run, phase)),
        beat=lambda run: _look_around(run, told),
        stuck=lambda _error: _end_this_process(),
    )


class _Throttle:
    """Lets one call through in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = 0.0

    def passes(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def _look_around(run_id: uuid.UUID, told: _Throttle) -> None:
    """While a step is worked on: tell how far its run is, and sweep if nobody else does. In threads of their own: a
    broker or a result backend that hangs must not cost the step its lease."""
    if told.passes():
        aside("progress", lambda: store_progress(run_id))
    if runs.is_due(get_limits().sweep() * 2):
        aside("sweep", lambda: send_swept(runs.sweep()))


def _end_this_process() -> None:
    """The thread that works hangs in a storage. The pool starts another process in the place of this one."""
    if current_process().name.startswith("ForkPoolWorker"):
        os.kill(os.getpid(), signal.SIGKILL)


def _ask_again(step_id: int) -> None:
    """On the way out: the next worker should begin at once, and whoever waits for the run should learn of its end."""
    try:
        run_id = runs.run_of(step_id)
        publish_ready_steps(run_id)
        conclude(run_id)
    except Exception as error:  # noqa: BLE001 - the next sweep does it
        logger.warning("The next worker could not be asked to go on: %s", redact(str(error)))


def conclude(run_id: uuid.UUID) -> None:
    """Finish a run all of whose steps have ended, if nobody does, and do all that follows from its end."""
    finished = execution.finish(run_id, _hooks())
    if finished is not None:
        store_result(finished)
        _prune_after(finished)
        for waiting in runs.waiting():
            _publish_again(waiting)


def _prune_after(run: Run) -> None:
    """Prune the likes of a snapshot that was asked for with a retention policy, once it is there."""
    request = Request.from_json(run.request)
    if run.kind != Kind.SNAPSHOT or run.state != State.SUCCEEDED or not request.retention:
        return
    wanted = Request(like=run.name, retention=request.retention, schedule=request.schedule)
    # It is in the journal: if the broker is away, the next sweep sends it.
    _publish_again(_record(Kind.PRUNE, wanted, _requester(wanted)))


def _requester(request: Request) -> runs.Requester:
    if request.schedule:
        return runs.Requester(name=request.schedule, source="schedule")
    return runs.Requester(source="task")


def send(kind: Kind, request: Request, requester: runs.Requester) -> Run:
    """Record a request in the journal and hand it to the workers; return its run, whose id is the task's id.

    Raises ``SnapshotError`` if the broker doesn't take the message; then the run has failed.
    """
    run = _record(kind, request, requester)
    _publish(run, request)
    return run


def send_on_commit(
    kind: Kind,
    request: Request,
    requester: runs.Requester,
    *,
    told: Callable[[SnapshotError | None], None] = lambda _: None,
) -> Run:
    """Record a request in the caller's transaction, and hand it to the workers once that is committed.

    If it is rolled back there is neither a run nor a message. *told* is called when the message is out, with the error
    if the broker did not take it; then the run has failed.
    """
    run = _record(kind, request, requester)

    def publish() -> None:
        try:
            _publish(run, request)
        except SnapshotError as error:
            told(error)
        else:
            told(None)

    transaction.on_commit(publish, using=runs.alias())
    return run


def request_restore(
    name: str | None = None,
    *,
    databases: Sequence[str] | None = None,
    artifacts: Sequence[str] | None = None,
    confirm: Sequence[str] = (),
    elsewhere: bool = False,
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
        "wait": wait,
    }
    requester = runs.Requester(name=requested_by, source="code")
    result: AsyncResult[dict[str, Any]] = restore.AsyncResult(
        send(Kind.RESTORE, Request.from_json(data), requester).task_id
    )
    return result


def _record(kind: Kind, request: Request, requester: runs.Requester) -> Run:
    run_id = uuid.uuid4()
    # Whoever can call this is the application itself, which has asked whether they may.
    request = replace(request, granted=kind == Kind.RESTORE)
    run, _ = runs.begin(kind, request, run=run_id, requester=requester, task_id=str(run_id))
    return run


def _publish(run: Run, request: Request) -> None:
    try:
        _send_task(run, request)
    except SnapshotError:
        # Of an eager task, which has done the whole run and ended it.
        raise
    except Exception as error:  # noqa: BLE001
        # Each transport has errors of its own for a broker that isn't there.
        refused = SnapshotError(redact(f"The Celery broker can't be reached, nothing was begun: {error}."))
        runs.refuse(run, refused)
        raise refused from None


def _publish_again(run: Run, **options: Any) -> None:
    """Send the message of a queued run that is in the journal; if the broker is away, a later sweep does it."""
    try:
        _send_task(run, Request.from_json(run.request), **{"expires": _HINT_EXPIRES, **options})
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        logger.warning("The message of run %s could not be sent: %s", run.pk, redact(str(error)))


def _send_task(run: Run, request: Request, **options: Any) -> None:
    kind = Kind(run.kind)
    task = {
        Kind.SNAPSHOT: snapshot,
        Kind.RESTORE: restore,
        Kind.VERIFY: verify,
        Kind.DELETE: delete,
        Kind.PRUNE: prune,
    }[kind]
    if current_app.conf.task_always_eager:
        task.apply(kwargs=_arguments(kind, request), task_id=run.task_id)
    else:
        task.send(_arguments(kind, request), run.task_id, **options)


def _arguments(kind: Kind, request: Request) -> dict[str, Any]:
    """What the task of this kind takes of a request."""
    taken: tuple[str, ...] = {
        Kind.DELETE: ("name", "wait"),
        Kind.PRUNE: ("retention", "like", "dry_run", "only", "schedule"),
        Kind.SNAPSHOT: ("name", "databases", "artifacts", "metadata", "retention", "schedule", "wait"),
        Kind.RESTORE: ("name", "databases", "artifacts", "confirm", "elsewhere", "wait"),
        Kind.VERIFY: ("name", "level", "schedule", "wait"),
    }[kind]
    return {key: value for key, value in request.to_json().items() if key in taken}


def publish_ready(run_id: uuid.UUID, after: int = -1) -> None:
    """Send a message for every step of the phase that follows *after*, if it may begin; a step that gets two is
    worked on once. Raises what the transport raises."""
    ready = runs.ready(run_id, after=after)
    for step_id in ready:
        step.delay(step_id)
    runs.hinted(ready)


def publish_ready_steps(run_id: uuid.UUID) -> None:
    """Send a message for every step of a run that may begin, whenever the last one was sent."""
    swept = runs.Swept()
    runs.sweep_run(runs.get(run_id), swept)
    for step_id in swept.begin:
        step.delay(step_id)


def send_swept(swept: runs.Swept) -> bool:
    """Send what a sweep has found to be sent; whether it could. If the broker is away, the next one finds it again."""
    sent = False
    try:
        for run in swept.ask_again:
            _send_task(run, Request.from_json(run.request), expires=_HINT_EXPIRES)
        for step_id in swept.begin:
            step.apply_async((step_id,), expires=_HINT_EXPIRES)
        for run_id in swept.finish:
            finish.apply_async((str(run_id),), expires=_HINT_EXPIRES)
        sent = True
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        logger.warning("What the sweep found could not be sent to the broker: %s", redact(str(error)))
    for run in swept.tell:
        store_result(run)
    return sent


def store_result(run: Run) -> None:
    """Give whoever waits for the task that was called its result, or its error; a backend that is away gets it by a
    later sweep."""
    if not run.task_id:
        return
    backend = current_app.backend
    try:
        try:
            backend.store_result(run.task_id, execution.outcome(run), states.SUCCESS)
        except SnapshotError as error:
            backend.store_result(run.task_id, error, states.FAILURE)
        runs.told(run)
    except Exception as error:  # noqa: BLE001 - each backend has errors of its own
        logger.warning("The result of run %s could not be stored: %s", run.pk, redact(str(error)))


def store_progress(run_id: uuid.UUID) -> None:
    """Tell how far a run is, as the ``info`` of the task that was called."""
    run = runs.get(run_id)
    if not run.task_id or run.state != State.RUNNING:
        return
    current_app.backend.store_result(run.task_id, execution.progress(run), "PROGRESS")


def aside(name: str, work: Callable[[], object]) -> None:
    """Do *work* in a thread of its own, unless one of that name is still at it; what goes wrong is logged."""
    name = f"snapshots-{name}"
    if any(thread.name == name for thread in threading.enumerate()):
        return

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a broker, a result backend or the journal is away
            logger.warning("%s: %s", name, redact(str(error)))
        finally:
            connections.close_all()

    if runs.seen_by_this_thread_alone():
        work()
        return
    threading.Thread(target=run, name=name, daemon=True).start()


def _run(task: SnapshotTask, kind: Kind, data: dict[str, Any]) -> dict[str, Any]:
    """Begin a run and leave its result to the finish; in eager mode, or called as a function, do it all here."""
    request = Request.from_json(data)
    if task.request.called_directly or task.request.is_eager:
        # A request that is in the journal already, when it comes from the admin, keeps its run.
        run_id = _run_id(str(task.request.id)) if task.request.id else None
        result = execution.run_inline(kind, request, run_id=run_id, requester=runs.Requester(source="code"))
        if kind == Kind.SNAPSHOT:
            _prune_after(runs.get(uuid.UUID(str(result["run"]))))
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
        requester=_requester(request),
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
