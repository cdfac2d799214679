"""What whoever waits for ``snapshot.delay()`` is told: how far it is, what came of it, and that nobody can tell."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any, NoReturn

from celery import current_app, states
from celery.backends.base import DisabledBackend

from django_snapshots import execution, runs
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotError
from django_snapshots.models import Run, State
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")

_SECONDS_FOR_RESULTS = 10.0


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


def store_results(ended: Iterable[Run]) -> None:
    """The same for several, for some seconds: a backend that is slow or away must not keep a sweep."""
    deadline = time.monotonic() + _SECONDS_FOR_RESULTS
    for run in ended:
        if time.monotonic() > deadline:
            logger.warning("The result backend is slow or away; the other results are stored by a later sweep.")
            return
        store_result(run)


def store_progress(run_id: uuid.UUID) -> None:
    """Tell how far a run is, as the ``info`` of the task that was called."""
    run = runs.get(run_id)
    if run.task_id and run.state == State.RUNNING:
        current_app.backend.store_result(run.task_id, execution.progress(run), "PROGRESS")


class NoBackend(DisabledBackend):
    """Says what to do; Celery's own fails with an ``AttributeError`` for all but ``get``."""

    def _refuse(self, *_arguments: Any, **_more: Any) -> NoReturn:
        raise SnapshotConfigurationError(
            "This project has no result backend, so a task's result can't be asked for; the run goes on all the same. "
            "Look at it with `manage.py snapshots status`, in the admin, or by Run.objects.get(pk=result.id); or set "
            'CELERY_RESULT_BACKEND to "django-db" (of django-celery-results) or to a Redis URL.'
        )

    get_task_meta = wait_for_pending = task_result_exists = _refuse
    get_state = get_status = get_result = get_traceback = get_task_meta_for = wait_for = get_many = _refuse
