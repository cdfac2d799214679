"""The service's Celery app: ``celery -A tasks worker`` and ``celery -A tasks beat``.

Start each worker with a node name of its own (``-n snapshots-1@%h``): the ``filesystem://`` broker keeps what was sent
to a name, and a stored request to shut down would end the next worker that has it.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_init

from django_snapshots.filesystem_broker import forget_processed

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tasks.settings")

app = Celery("tasks")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
def clean_up(**_signal: Any) -> None:
    """Throw away the messages that the ``filesystem://`` broker kept after they were delivered."""
    folder = app.conf.broker_transport_options.get("processed_folder")
    if folder:
        forget_processed(folder)
