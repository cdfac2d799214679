"""The service's Celery app: ``celery -A tasks worker`` and ``celery -A tasks beat``.

Start each worker with a node name of its own (``-n snapshots-1@%h``): what is said to one is
heard by whoever has its name.
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tasks.settings")

app = Celery("tasks")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
