"""What is sent to the workers: hints at what the journal holds. One that is lost is sent again by a sweep.

Tasks are named and not imported: whoever has something in the journal may have it done, without knowing how.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from celery import current_app
from django.db import connections, transaction

from django_snapshots import runs
from django_snapshots.conf import get_queue
from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import Kind, Run
from django_snapshots.plan import Request
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")

PREFIX = "django_snapshots."
"""How the names of our tasks begin."""
EXPIRES = 600.0
"""Seconds after which a message that was sent again is void: the next sweep sends another."""


# Runs


def send(kind: Kind, request: Request, requester: runs.Requester) -> Run:
    """Record a request in the journal and hand it to the workers; return its run, whose id is the task's id.

    Raises ``SnapshotError`` if the broker doesn't take the message; then the run has failed.
    """
    run = record(kind, request, requester)
    _publish(run)
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
    run = record(kind, request, requester)

    def publish() -> None:
        try:
            _publish(run)
        except SnapshotError as error:
            told(error)
        else:
            told(None)

    transaction.on_commit(publish, using=runs.alias())
    return run


def record(kind: Kind, request: Request, requester: runs.Requester) -> Run:
    """Record a request in the journal, for a message to follow."""
    run_id = uuid.uuid4()
    # Whoever can call this is the application itself, which has asked whether they may.
    request = replace(request, granted=kind in runs.SETTLED)
    run, _ = runs.begin(kind, request, run=run_id, requester=requester, task_id=str(run_id))
    return run


def _publish(run: Run) -> None:
    try:
        _send_run(run)
    except SnapshotError:
        # Of an eager task, which has done the whole run and ended it.
        raise
    except Exception as error:  # noqa: BLE001
        # Each transport has errors of its own for a broker that isn't there.
        refused = SnapshotError(redact(f"The Celery broker can't be reached, nothing was begun: {error}."))
        runs.refuse(run, refused)
        raise refused from None


def publish_again(run: Run, **options: Any) -> None:
    """Send the message of a queued run that is in the journal; if the broker is away, a later sweep does it.

    The first message of a run is never void by itself: there may be nobody who sweeps.
    """
    try:
        _send_run(run, **options)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        logger.warning("The message of run %s could not be sent: %s", run.pk, redact(str(error)))


def _send_run(run: Run, **options: Any) -> None:
    kind = Kind(run.kind)
    kwargs = _arguments(kind, Request.from_json(run.request))
    if current_app.conf.task_always_eager:
        current_app.tasks[f"{PREFIX}{kind}"].apply(kwargs=kwargs, task_id=run.task_id)
    else:
        _send(kind, kwargs=kwargs, task_id=run.task_id, **options)


def _arguments(kind: Kind, request: Request) -> dict[str, Any]:
    """What the task of this kind takes of a request."""
    taken: tuple[str, ...] = {
        Kind.DELETE: ("name", "wait"),
        Kind.PRUNE: ("retention", "like", "dry_run", "only", "schedule"),
        Kind.SNAPSHOT: ("name", "databases", "artifacts", "metadata", "retention", "schedule", "wait"),
        Kind.RESTORE: (
            *("name", "databases", "artifacts", "confirm", "elsewhere", "into", "database_names"),
            "tables",
            *("merge", "migrate", "no_owner", "wait"),
        ),
        Kind.UNDO: ("undo", "databases", "artifacts", "confirm", "wait"),
        Kind.VERIFY: ("name", "level", "schedule", "wait"),
        Kind.DRILL: ("name", "schedule", "wait"),
    }[kind]
    return {key: value for key, value in request.to_json().items() if key in taken}


# Steps


def publish_ready(run_id: uuid.UUID, after: int = -1) -> None:
    """Send a message for every step of the phase that follows *after*, if it may begin; a step that gets two is
    worked on once. Raises what the transport raises."""
    ready = runs.ready(run_id, after=after)
    _begin(ready)
    runs.hinted(ready)


def publish_given_back(run_id: uuid.UUID) -> None:
    """Send a message for every step of a run that may begin, whenever the last one was sent."""
    swept = runs.Swept()
    runs.sweep_run(runs.get(run_id), swept)
    _begin(swept.begin)


def _begin(steps: Sequence[int], **options: Any) -> None:
    for step_id in steps:
        _send("step", args=(step_id,), **options)


def _send(task: str, **options: Any) -> None:
    # An operator may have given a periodic task a queue of its own; a message is JSON whoever asks.
    current_app.send_task(f"{PREFIX}{task}", **{"queue": get_queue(), **options, "serializer": "json"})


# Sweeps


def send_swept(swept: runs.Swept) -> bool:
    """Send what a sweep has found to be sent; whether it could. If the broker is away, the next one finds it again."""
    try:
        for run in swept.ask_again:
            _send_or_refuse(run)
        _begin(swept.begin, expires=EXPIRES)
        for run_id in swept.finish:
            _send("finish", args=(str(run_id),), expires=EXPIRES)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        logger.warning("What the sweep found could not be sent to the broker: %s", redact(str(error)))
        return False
    return True


def _send_or_refuse(run: Run) -> None:
    try:
        _send_run(run, expires=EXPIRES)
    except SnapshotError as error:
        # Asked for by another version, perhaps: no worker could begin it, and it must not be in the others' way.
        runs.refuse(run, error)


def aside(name: str, work: Callable[[], object]) -> None:
    """Do *work* in a thread of its own, unless one of that name is still at it; what goes wrong is logged.

    A broker, or a result backend, that hangs must not cost a step its lease.
    """
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
