"""What ``snapshot.delay()`` returns where the project has no result backend."""

from __future__ import annotations

from typing import Any, NoReturn

from celery.backends.base import DisabledBackend

from django_snapshots.exceptions import SnapshotConfigurationError


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
