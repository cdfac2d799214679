"""The Celery tasks: thin, ids and plain JSON in, plain JSON out.

``snapshot.delay()`` plans a run and sends a message for each of its steps; any worker dumps any step; whoever ends
the last one finishes the run and stores the result under the id of the task that was called. The journal owns the
work: a message is a hint, and one that is doubled finds nothing to do.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from celery import Task, current_app, shared_task, states
from celery.exceptions import Ignore
from django.db import transaction

from django_snapshots import execution, runs
from django_snapshots.conf import get_queue
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotError
from django_snapshots.models import FINAL_STATES, Kind, Run, State
from django_snapshots.plan import Request
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")


class SnapshotTask(Task):  # type: ignore[type-arg]
    """Sends to the queue in ``SNAPSHOTS["QUEUE"]``, which is read when the first message is sent."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        return get_queue()


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
) -> dict[str, Any]:
    """Take a snapshot; the result is ``{"name", "run", "created_at", "size", "artifacts"}``.

    *name* may be a template, and defaults to ``SNAPSHOTS["NAME"]``; *databases* and *artifacts* default to what the
    settings include; *metadata* is plain JSON for the manifest. *retention* is a policy, or true for
    ``SNAPSHOTS["RETENTION"]``, by which snapshots like this one are pruned once it has succeeded. *schedule* names the
    schedule that asked.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "metadata": metadata,
        "retention": retention,
        "schedule": schedule,
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
) -> dict[str, Any]:
    """Restore the snapshot called *name*, or the latest; the result is the report.

    *confirm* holds the name of every target that isn't empty and may be replaced.
    """
    data = {
        "name": name,
        "databases": databases,
        "artifacts": artifacts,
        "confirm": confirm,
        "elsewhere": elsewhere,
    }
    return _run(self, Kind.RESTORE, data)


@shared_task(bind=True, name="django_snapshots.verify", ignore_result=False, **_OPTIONS)
def verify(self: SnapshotTask, name: str | None = None, level: int = 2, schedule: str | None = None) -> dict[str, Any]:
    """Verify the snapshot called *name*, or the latest, to *level* 1 or 2; the result is the report."""
    return _run(self, Kind.VERIFY, {"name": name, "level": level, "schedule": schedule})


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
def delete(self: SnapshotTask, name: str) -> dict[str, Any]:
    """Delete the snapshot called *name*; the result is ``{"deleted": name}``."""
    return _run(self, Kind.DELETE, {"name": name})


@shared_task(name="django_snapshots.step", ignore_result=True, **_OPTIONS)
def step(step_id: int) -> None:
    """Work on one step, and finish the run if it was the last."""
    try:
        run_id = execution.work(step_id, execution.Hooks(moment_fixed=publish_ready))
    except BaseException:
        # The worker is being shut down: the step has failed, and whoever waits for the run should learn it now.
        _conclude(runs.run_of(step_id))
        raise
    if run_id is not None:
        _conclude(run_id)


def _conclude(run_id: uuid.UUID) -> None:
    try:
        finished = execution.finish(run_id)
    except BaseException:
        # Shut down in the middle of the finish, which has told the journal; whoever waits should learn it too.
        run = runs.get(run_id)
        if run.state in FINAL_STATES:
            store_result(run)
        raise
    if finished is not None:
        store_result(finished)
        _prune_after(finished)


def _prune_after(run: Run) -> None:
    """Prune the likes of a snapshot that was asked for with a retention policy, once it is there."""
    request = Request.from_json(run.request)
    if run.kind != Kind.SNAPSHOT or run.state != State.SUCCEEDED or not request.retention:
        return
    wanted = Request(like=run.name, retention=request.retention, schedule=request.schedule)
    try:
        send(Kind.PRUNE, wanted, _requester(wanted))
    except SnapshotError as error:
        logger.warning("Snapshot %s is there, but the prune that follows it could not be sent: %s", run.name, error)


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


def _record(kind: Kind, request: Request, requester: runs.Requester) -> Run:
    run_id = uuid.uuid4()
    run, _ = runs.begin(kind, request, run=run_id, requester=requester, task_id=str(run_id))
    return run


def _publish(run: Run, request: Request) -> None:
    kind = Kind(run.kind)
    task = {
        Kind.SNAPSHOT: snapshot,
        Kind.RESTORE: restore,
        Kind.VERIFY: verify,
        Kind.DELETE: delete,
        Kind.PRUNE: prune,
    }[kind]
    try:
        task.apply_async(kwargs=_arguments(kind, request), task_id=run.task_id)
    except SnapshotError:
        # Of an eager task, which has done the whole run and ended it.
        raise
    except Exception as error:  # noqa: BLE001
        # Each transport has errors of its own for a broker that isn't there.
        refused = SnapshotError(redact(f"The Celery broker can't be reached, nothing was begun: {error}."))
        runs.end_with(run, refused)
        raise refused from None


def _arguments(kind: Kind, request: Request) -> dict[str, Any]:
    """What the task of this kind takes of a request."""
    taken: tuple[str, ...] = {
        Kind.DELETE: ("name",),
        Kind.PRUNE: ("retention", "like", "dry_run", "only", "schedule"),
        Kind.SNAPSHOT: ("name", "databases", "artifacts", "metadata", "retention", "schedule"),
        Kind.RESTORE: ("name", "databases", "artifacts", "confirm", "elsewhere"),
        Kind.VERIFY: ("name", "level", "schedule"),
    }[kind]
    return {key: value for key, value in request.to_json().items() if key in taken}


def publish_ready(run_id: uuid.UUID, after: int = -1) -> None:
    """Send a message for every step of the phase that follows *after*, if it may begin; a step that gets two is
    worked on once."""
    for step_id in runs.ready(run_id, after=after):
        step.delay(step_id)


def store_result(run: Run) -> None:
    """Give whoever waits for the task that was called its result, or its error."""
    if not run.task_id:
        return
    backend = current_app.backend
    try:
        backend.store_result(run.task_id, execution.outcome(run), states.SUCCESS)
    except SnapshotError as error:
        backend.store_result(run.task_id, error, states.FAILURE)


def _run(task: SnapshotTask, kind: Kind, data: dict[str, Any]) -> dict[str, Any]:
    """Begin a run and leave its result to the finish; in eager mode, or called as a function, do it all here."""
    request = Request.from_json(data)
    if task.request.called_directly or task.request.is_eager:
        # A request that is in the journal already, when it comes from the admin, keeps its run.
        run_id = _run_id(str(task.request.id)) if task.request.id else None
        result = execution.run_inline(kind, request, run_id=run_id, requester=runs.Requester(source="code"))
        if kind == Kind.SNAPSHOT:
            _prune_after(Run.objects.using(runs.alias()).get(pk=str(result["run"])))
        return result
    task_id = str(task.request.id)
    run, _ = runs.begin(kind, request, run=_run_id(task_id), requester=_requester(request), task_id=task_id)
    execution.launch(run)
    try:
        publish_ready(run.pk)
    except Exception as error:  # noqa: BLE001 - each broker has errors of its own
        failure = SnapshotError(redact(f"The steps could not be sent to the Celery broker: {error}."))
        runs.give_up(run.pk, failure)
        _conclude(run.pk)
        raise failure from None
    raise Ignore


def _run_id(task_id: str) -> uuid.UUID:
    """The run's id is the task's, so that a message that comes twice finds its run; Celery's ids are UUIDs unless
    somebody chose another."""
    with contextlib.suppress(ValueError):
        return uuid.UUID(task_id)
    return uuid.uuid5(uuid.NAMESPACE_OID, task_id)
