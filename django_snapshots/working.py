"""What a worker does around a step: tells of it, looks after others meanwhile, brings the run to its end."""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid

from billiard import current_process

from django_snapshots import execution, runs
from django_snapshots.conf import get_limits
from django_snapshots.messages import (
    EXPIRES,
    aside,
    publish_again,
    publish_given_back,
    publish_ready,
    record,
    send_swept,
)
from django_snapshots.models import FINAL_STATES, Kind, Run, State
from django_snapshots.plan import Request
from django_snapshots.redaction import redact
from django_snapshots.results import store_progress, store_result, store_results

logger = logging.getLogger("django_snapshots")

PROGRESS_SECONDS = 5.0
"""How often a run's progress is given to whoever waits for its task."""


def work(step_id: int) -> None:
    """Work on one step, and finish the run if it was the last."""
    try:
        run_id = execution.work(step_id, hooks())
    except BaseException:
        # The worker is being shut down, and has given its step back or ended it.
        _ask_again(step_id)
        raise
    if run_id is not None:
        conclude(run_id)


def conclude(run_id: uuid.UUID) -> None:
    """Finish a run all of whose steps have ended, if nobody does, and do all that follows from its end."""
    finished = execution.finish(run_id, hooks())
    if finished is None:
        return
    store_result(finished)
    prune_after(finished)
    for waiting in runs.waiting():
        publish_again(waiting, expires=EXPIRES)


def cancel_run(run: uuid.UUID | str, *, by: str = "") -> Run:
    """Cancel the run with this id, or whose id begins so; return it as it is then.

    What works on it ends within two seconds, wherever it is; what nobody has begun ends now. Needs the journal alone,
    no broker. Raises ``SnapshotNotFoundError``, and ``SnapshotError`` for a run that has ended or can't go back.
    """
    found = execution.cancel_run(run, by=by)
    if found.state in FINAL_STATES:
        # Whoever waits for it should learn of it now; a backend that is away must not keep whoever cancels.
        aside("result", lambda: store_result(found))
    return found


def give_up_run(run: uuid.UUID | str, *, by: str = "") -> Run:
    """End a restore or undo of which it can't be told what became of its targets; return it as it is then. Raises
    ``SnapshotError``."""
    found = execution.give_up_run(run, by=by)
    aside("result", lambda: store_result(found))
    return found


def prune_after(run: Run) -> None:
    """Prune the likes of a snapshot that was asked for with a retention policy, once it is there."""
    request = Request.from_json(run.request)
    if run.kind != Kind.SNAPSHOT or run.state != State.SUCCEEDED or not request.retention:
        return
    wanted = Request(like=run.name, retention=request.retention, schedule=request.schedule)
    # It is in the journal: if the broker is away, the next sweep sends it.
    publish_again(record(Kind.PRUNE, wanted, requester_of(wanted)))


def requester_of(request: Request) -> runs.Requester:
    """Who asked by a task."""
    if request.schedule:
        return runs.Requester(name=request.schedule, source="schedule")
    return runs.Requester(source="task")


def sweep() -> None:
    """Take from the dead what they hold, and send what is to be sent."""
    swept = runs.sweep()
    send_swept(swept)
    store_results(swept.tell)


def hooks() -> execution.Hooks:
    """What a worker wants to hear while it works."""
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
    """Tell how far the run is, and sweep if nobody else does."""
    if told.passes():
        aside("progress", lambda: store_progress(run_id))
    if runs.is_due(get_limits().sweep() * 2):
        aside("sweep", sweep)


def _end_this_process() -> None:
    """The thread that works hangs in a storage. The pool starts another process in the place of this one."""
    if current_process().name.startswith("ForkPoolWorker"):
        os.kill(os.getpid(), signal.SIGKILL)


def _ask_again(step_id: int) -> None:
    """On the way out: the next worker should begin at once, and whoever waits for the run should learn of its end."""
    try:
        run_id = runs.run_of(step_id)
        publish_given_back(run_id)
        conclude(run_id)
    except Exception as error:  # noqa: BLE001 - the next sweep does it
        logger.warning("The next worker could not be asked to go on: %s", redact(str(error)))
